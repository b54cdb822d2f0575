// A log that follows, with the colours of its guest, in xterm.js; it stays at the newest line until one scrolls up.
import { FitAddon } from "./vendor/addon-fit.mjs";
import { Terminal } from "./vendor/xterm.mjs";

// The page's policy takes no style that did not come with it.  xterm.js makes style elements, which get this page's
// nonce, and style attributes, which are set the way that needs none.
const { nonce } = document.getElementById("log-script");
const create = document.createElement.bind(document);
document.createElement = (name, ...rest) => {
  const made = create(name, ...rest);
  if (name === "style") made.nonce = nonce;
  return made;
};
const set = Element.prototype.setAttribute;
Element.prototype.setAttribute = function (name, value) {
  if (name === "style") this.style.cssText = value;
  else set.call(this, name, value);
};

const place = document.getElementById("log");
const state = document.getElementById("log-state");
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () =>
  dark.matches
    ? { background: "#14181d", foreground: "#dfe5eb", cursor: "#14181d", selectionBackground: "#3d4f66" }
    : { background: "#ffffff", foreground: "#1d2733", cursor: "#ffffff", selectionBackground: "#c7d7ee",
        white: "#5b6773", brightWhite: "#1d2733", yellow: "#8a5a00", brightYellow: "#8a5a00" };

const terminal = new Terminal({
  convertEol: true,
  disableStdin: true,
  fontSize: 13,
  scrollback: 20000,
  theme: theme(),
  minimumContrastRatio: 4.5,
  // What a guest prints may look like a link; it leads nowhere.
  linkHandler: { activate() {} },
  scrollOnEraseInDisplay: true,
});
// Firmware clears the screen, resets the terminal and ends the wrapping of lines; a log keeps what was said.
terminal.parser.registerEscHandler({ final: "c" }, () => true);
terminal.parser.registerCsiHandler({ final: "J" }, ([what]) => what === 3);
terminal.parser.registerCsiHandler({ prefix: "?", final: "l" }, ([mode]) => mode === 7);
const fit = new FitAddon();
terminal.loadAddon(fit);
place.hidden = false;
terminal.open(place);
fit.fit();
new ResizeObserver(() => fit.fit()).observe(place);
dark.addEventListener("change", () => (terminal.options.theme = theme()));
window.terminal = terminal; // for a person at the browser's own console

// The log of a VM: one long answer.
async function follow() {
  const answer = await fetch(place.dataset.url);
  if (!answer.ok) throw new Error((await answer.json()).message);
  terminal.reset();
  state.textContent = "";
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    terminal.write(value.replaceAll("[vmm heartbeat]\n", ""));
  }
}

// The output of a job: asked for piece by piece, each from where the one before ended.
let end = "0";
async function read() {
  for (let over = false; !over; ) {
    const answer = await fetch(`${place.dataset.output}?after=${end}`, { headers: { "HX-Request": "true" } });
    if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
    state.textContent = "";
    const next = answer.headers.get("X-Log-End");
    terminal.write(new Uint8Array(await answer.arrayBuffer()));
    over = answer.headers.get("X-Log-Over") === "1";
    if (next === end) await new Promise((done) => setTimeout(done, 700));
    end = next;
  }
}

for (let over = false; !over; ) {
  try {
    await (place.dataset.output ? read() : follow());
    over = Boolean(place.dataset.output);
    state.textContent = over ? "This is all that the job said." : "The log ended.";
  } catch (refusal) {
    state.textContent = `The log is interrupted (${refusal.message}); trying again.`;
  }
  if (!over) await new Promise((done) => setTimeout(done, 3000));
}
