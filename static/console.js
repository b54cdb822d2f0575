// What every page of the console does with script: menus, dialogs, copying, and saying when the service is away.
import { rows, secrets } from "./form.js";

const notes = document.getElementById("notes");
const dialog = document.getElementById("dialog");

// An open menu stays open, and what is typed stays typed, when a page renews itself.
if (window.Idiomorph) {
  Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name) => name !== "open";
}

document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.elt.id === "live" && document.hidden) event.preventDefault();
});

document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  // A form that was refused comes back with the reasons in it.
  if (detail.requestConfig.elt.matches("form.big, #hash") && detail.xhr.status >= 400) {
    detail.shouldSwap = true;
    detail.isError = false;
  }
});

document.addEventListener("htmx:afterSwap", ({ detail }) => {
  if (detail.target === dialog) dialog.showModal();
});

document.addEventListener("htmx:afterSettle", ({ detail }) => {
  reveal(document);
  if (detail.requestConfig.elt.matches("form.big")) {
    const wrong = document.querySelector(".refusal, [aria-invalid=true]");
    wrong?.scrollIntoView({ block: "center" });
    document.querySelector("[aria-invalid=true]")?.focus({ preventScroll: true });
  }
});

document.addEventListener("htmx:afterRequest", ({ detail }) => {
  if (dialog.contains(detail.elt)) dialog.close();
  if (detail.successful) notes.querySelector(".away")?.remove();
});
document.addEventListener("htmx:sendError", () => away("The service does not answer; trying again."));
document.addEventListener("htmx:responseError", ({ detail }) => {
  away(detail.xhr.status === 404 ? "This is not there any more." : `The service answered ${detail.xhr.status}.`);
});

function away(text) {
  const note = notes.querySelector(".away") ?? notes.appendChild(document.createElement("p"));
  note.className = "refusal away";
  note.textContent = text;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy], [data-close], [data-confirm]");
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.querySelector("summary").contains(event.target)) menu.open = false;
  }
  if (button?.dataset.copy) {
    await copy(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  } else if (button?.dataset.confirm) {
    if (!confirm(button.dataset.confirm)) event.preventDefault();
  } else if (button && dialog.open) {
    event.preventDefault();
    dialog.close();
  }
});

document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.querySelector("details.menu[open]");
  if (menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Plain HTTP from another machine: the browser has only the old way.
  const area = document.body.appendChild(document.createElement("textarea"));
  area.value = text;
  area.select();
  document.execCommand("copy");
  area.remove();
}

// What works only with script is hidden without it.
function reveal(root) {
  // In what htmx puts in they are elements like others, with fields that would be sent.
  for (const each of root.querySelectorAll("noscript")) each.remove();
  for (const each of root.querySelectorAll("[data-copy], [data-add-row], [data-remove-row], .file, #env")) {
    each.hidden = false;
  }
}

reveal(document);
rows(reveal);
secrets();
