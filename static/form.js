// The deploy and update forms: rows that come and go, files that are loaded, and variables that are encrypted here.
import { fromHex, seal, toHex } from "./seal.js";

// Rows of ports, cards and variables; files into text areas.
export function rows(reveal) {
  document.addEventListener("click", ({ target }) => {
    const add = target.closest("[data-add-row]");
    if (add) {
      const row = clone(add.dataset.addRow, document.getElementById(add.dataset.to));
      reveal(row);
      changed(row);
    }
    const remove = target.closest("[data-remove-row]");
    if (remove) {
      const around = remove.closest(".rows");
      remove.closest(".row").remove();
      changed(around);
    }
  });
  document.addEventListener("change", async ({ target }) => {
    if (!target.dataset?.into || !target.files.length) return;
    const area = document.getElementById(target.dataset.into);
    area.value = await target.files[0].text();
    target.value = "";
    changed(area);
  });
}

function clone(template, into) {
  into.append(document.getElementById(template).content.cloneNode(true));
  const row = into.lastElementChild;
  row.querySelector("input, select").focus();
  return row;
}

function changed(element) {
  element.dispatchEvent(new Event("input", { bubbles: true }));
}

// The variables: typed or pasted, known to this page alone, sent encrypted.
export function secrets() {
  document.addEventListener("click", ({ target }) => {
    if (target.id === "env-add") clone("env-row", variables());
    if (target.id === "env-read") read(document.getElementById("env-text"));
  });
  document.addEventListener("input", ({ target }) => {
    if (target.closest("#env")) {
      const reset = document.getElementById("reset_secrets");
      if (reset) reset.checked = true;
    }
    if (target.closest("#env, #reset_secrets")) name_them(document.getElementById("vm-form"));
  });
  document.addEventListener("htmx:confirm", (event) => {
    const form = event.detail.elt;
    if (form.id !== "vm-form" || !wants(form)) return;
    event.preventDefault();
    tell("");
    encrypt(form).then(
      () => event.detail.issueRequest(true),
      (refusal) => tell(refusal.message),
    );
  });
}

const variables = () => document.querySelector("#env .rows");

function read(area) {
  for (const line of area.value.split("\n")) {
    const found = /^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*$/.exec(line);
    if (!found) continue;
    const row = clone("env-row", variables());
    row.querySelector(".env-name").value = found[1];
    row.querySelector(".env-value").value = found[2].replace(/^(["'])(.*)\1$/, "$2");
  }
  area.value = "";
  area.closest("details").open = false;
  changed(variables());
}

// Name and value of each row; the last of one name counts, as in a .env file.
function items() {
  const found = new Map();
  for (const row of variables().children) {
    const key = row.querySelector(".env-name").value.trim();
    if (key) found.set(key, row.querySelector(".env-value").value);
  }
  return [...found].map(([key, value]) => ({ key, value }));
}

function wants(form) {
  const reset = form.elements.reset_secrets;
  return reset ? reset.checked : items().length > 0;
}

// The app-compose document lets in what is named there: the names are part of what is measured.
function name_them(form) {
  const names = form.elements.allowed_envs;
  const replaces = form.elements.reset_secrets?.checked ?? true;
  names.value = replaces ? items().map(({ key }) => key).join(" ") : names.dataset.before;
}

async function encrypt(form) {
  const given = items();
  const bad = given.find(({ key }) => !/^[A-Za-z_]\w*$/.test(key));
  if (bad) throw new Error(`${bad.key}: a name has letters, digits and _, and does not begin with a digit`);
  const body = new URLSearchParams(new FormData(form));
  const answer = await fetch("/console/env-key", { method: "POST", body, headers: { "HX-Request": "true" } });
  const told = await answer.json().catch(() => ({ message: `the service answered ${answer.status}` }));
  if (!answer.ok) throw new Error(`The app's key could not be fetched: ${told.message}`);
  form.elements.encrypted_env.value = toHex(await seal(fromHex(told.public_key), given));
}

function tell(text) {
  const place = document.getElementById("why-sealing");
  place.textContent = text;
  place.hidden = !text;
  if (text) place.scrollIntoView({ block: "center" });
}
