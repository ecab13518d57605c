import { Call } from "/web/call.js";
import { COLOURS, Drawing, SHAPES } from "/web/drawing.js";
import { Looking } from "/web/looking.js";
import { Plot } from "/web/plot.js";
import { explain, Sound, wav } from "/web/sound.js";

const $ = (id) => document.getElementById(id);
const QUESTIONS = { what_colour: "What colour is the circle?", how_many: "How many stars are there?", describe: "What do you see?", hello: "Who are you?" };
const PICTURES = ["scene.png", "night.png"];
const RETRY_SEC = [1, 2, 4];

const state = { call: null, sound: null, muted: false, wanted: false, tries: 0, shown: null, mine: [], theirs: [], said: [], question: null };
const gates = new Plot($("gate-plot"), 1);
const delays = new Plot($("delay-plot"), 400);
const looking = new Looking($("live"), show);

function status(words, fault = false) {
  $("status").textContent = words;
  $("status").classList.toggle("fault", fault);
}

// What it sees

const drawing = new Drawing($("drawing"), () => ({ shape: chosen("shape"), colour: chosen("colour"), size: chosen("size") }), async () => show(await drawing.bytes()));

function choices(fieldset, name, values, mark) {
  for (const [place, value] of values.entries()) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name, value, checked: place === 0 });
    label.append(input, ...(mark ? [mark(value)] : []), value);
    fieldset.append(label);
  }
}

function dot(colour) {
  const span = Object.assign(document.createElement("span"), { className: "dot" });
  span.style.background = COLOURS[colour];
  return span;
}

const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

function show(blob) {
  state.shown = blob;
  state.call?.show(blob);
}

function picture(blob) {
  $("picture").src = URL.createObjectURL(blob);
  $("picture").hidden = false;
  show(blob);
}

function tab(name) {
  for (const button of $("tabs").children) {
    const on = button.id === `tab-${name}`;
    button.setAttribute("aria-selected", on);
    button.tabIndex = on ? 0 : -1;
    $(button.getAttribute("aria-controls")).hidden = !on;
    if (on) button.focus();
  }
  if (name !== "live") stopLooking();
}

async function look(begin) {
  try {
    await begin();
    $("live-stop").disabled = false;
  } catch (error) {
    if (error.name !== "AbortError") status(`Nothing to see: ${error.message || error.name}`, true);
  }
}

function stopLooking() {
  looking.stop();
  $("live-stop").disabled = true;
}

// The call

async function begin(hear) {
  state.wanted = true;
  state.hear = hear;
  $("start").textContent = "Hang up";
  try {
    state.sound ??= await Sound.make();
  } catch (error) {
    return end(`No sound here: ${error.message}`, true);
  }
  state.sound.onDelay((ms) => {
    delays.add(ms);
    $("delay-now").textContent = ms.toFixed(0);
  });
  connect();
}

function connect() {
  status("connecting");
  const call = (state.call = new Call());
  call.addEventListener("connected", async () => {
    state.tries = 0;
    await call.show(state.shown ?? (await drawing.bytes()));
  });
  call.addEventListener("metadata", ({ detail }) => {
    if (detail.queue) status(`All places are taken. You are number ${detail.queue} in the queue.`);
    if (detail.recorded) $("recorded").hidden = false;
  });
  call.addEventListener("begin", started);
  call.addEventListener("sound", ({ detail }) => {
    state.theirs.push(detail.samples);
    state.sound?.play(detail.samples);
  });
  call.addEventListener("text", ({ detail }) => written(detail.piece, detail.gate));
  call.addEventListener("fault", ({ detail }) => {
    state.fault = detail.words;
    note(detail.words);
  });
  call.addEventListener("end", ({ detail }) => {
    if (call !== state.call) return;
    const lost = state.wanted && !state.fault && state.tries < RETRY_SEC.length;
    if (!lost) return end(state.fault ?? detail.reason ?? "", Boolean(state.fault));
    status(`The line was lost. Calling again in ${RETRY_SEC[state.tries]} s.`, true);
    setTimeout(() => state.wanted && connect(), 1000 * RETRY_SEC[state.tries++]);
  });
}

async function started() {
  state.fault = null;
  for (const id of ["mute", "restart"]) $(id).disabled = false;
  $("downloads").hidden = false;
  status("listening: speak");
  try {
    await state.hear();
    fillDevices();
  } catch (error) {
    end(explain(error), true);
  }
}

function microphone() {
  return state.sound.listen($("device").value, heard);
}

function heard(frame) {
  const loudest = frame.reduce((top, value) => Math.max(top, Math.abs(value)), 0);
  $("level").value = state.muted ? 0 : loudest;
  const samples = state.muted ? new Float32Array(frame.length) : frame;
  if (state.call?.open) state.mine.push(samples);
  state.call?.say(samples);
}

function end(words = "", fault = false) {
  state.wanted = false;
  const { call } = state;
  state.call = null;
  call?.end();
  state.sound?.close();
  state.sound = null;
  $("level").value = 0;
  $("start").textContent = "Call";
  for (const id of ["mute", "restart"]) $(id).disabled = true;
  status(words || "the call is over", fault);
}

function again() {
  const { hear } = state;
  end();
  forget();
  begin(hear);
}

function forget() {
  Object.assign(state, { mine: [], theirs: [], said: [], fault: null });
  $("transcript").replaceChildren();
  gates.clear();
  delays.clear();
}

// What it says

function line(className) {
  const paragraph = Object.assign(document.createElement("p"), { className });
  $("transcript").append(paragraph);
  return paragraph;
}

function note(words) {
  line("note").textContent = words;
  $("transcript").scrollTop = 1e9;
}

function written(piece, gate) {
  const sec = state.theirs.reduce((sum, part) => sum + part.length, 0) / 24000;
  const quiet = sec - (state.said.at(-1)?.sec ?? -9) > 1.5;
  state.said.push({ piece, gate, sec: Number(sec.toFixed(2)) });
  const last = $("transcript").lastElementChild;
  const paragraph = quiet || !last || last.className === "note" ? line("said") : last;
  const span = Object.assign(document.createElement("span"), { textContent: piece, title: `gate ${gate.toFixed(1)}` });
  span.style.color = `color-mix(in oklab, var(--seeing) ${Math.round(Math.min(1, 3 * gate) * 100)}%, var(--blind))`;
  paragraph.append(span);
  $("transcript").scrollTop = 1e9;
  gates.add(gate);
  $("gate-now").textContent = gate.toFixed(1);
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function whole(parts) {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

async function fillDevices() {
  const kept = $("device").value;
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  const options = devices.filter((device) => device.kind === "audioinput").map((device, place) => new Option(device.label || `Microphone ${place + 1}`, device.deviceId));
  $("device").replaceChildren(...(options.length ? options : [new Option("none found", "")]));
  if (kept) $("device").value = kept;
}

// All together

choices($("shapes"), "shape", SHAPES);
choices($("colours"), "colour", Object.keys(COLOURS), dot);
choices($("sizes"), "size", ["large", "small"]);
$("clear").onclick = () => drawing.clear();
$("surprise").onclick = () => drawing.surprise();
for (const button of $("tabs").children) {
  button.onclick = () => tab(button.id.slice(4));
  button.onkeydown = ({ key }) => {
    const next = { ArrowRight: button.nextElementSibling, ArrowLeft: button.previousElementSibling }[key];
    if (next) tab(next.id.slice(4));
  };
}
$("file").onchange = ({ target }) => target.files[0] && picture(target.files[0]);
$("drop").ondragover = (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
};
$("drop").ondragleave = () => $("drop").classList.remove("over");
$("drop").ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) picture(file);
};
addEventListener("paste", ({ clipboardData }) => {
  const file = [...clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (!file) return;
  tab("file");
  picture(file);
});
for (const name of PICTURES) {
  const button = document.createElement("button");
  button.append(Object.assign(new Image(), { src: `/web/examples/${name}`, alt: `Example ${name}` }));
  button.onclick = async () => picture(await (await fetch(`/web/examples/${name}`)).blob());
  $("gallery").append(button);
}
$("camera").onclick = () => look(() => looking.camera());
$("screen").onclick = () => look(() => looking.screen());
$("clip").onchange = ({ target }) => target.files[0] && look(() => looking.clip(target.files[0]));
$("live-stop").onclick = stopLooking;
$("fps").oninput = ({ target }) => {
  $("fps-value").textContent = target.value;
  if (looking.on) looking.pace(Number(target.value));
  else looking.fps = Number(target.value);
};
$("start").onclick = () => {
  if (state.wanted) return end();
  forget();
  begin(microphone);
};
$("mute").onclick = () => {
  state.muted = !state.muted;
  $("mute").setAttribute("aria-pressed", state.muted);
  $("mute").textContent = state.muted ? "Unmute" : "Mute";
};
$("restart").onclick = again;
$("device").onchange = () => state.sound && state.call?.open && microphone().catch((error) => status(explain(error), true));
for (const [name, words] of Object.entries(QUESTIONS)) {
  const button = Object.assign(document.createElement("button"), { textContent: words, id: `ask-${name}` });
  const ask = () => state.sound.question(`/web/examples/${name}.wav`, heard);
  button.onclick = () => {
    if (state.call?.open) {
      state.sound.deafen();
      return ask();
    }
    forget();
    begin(ask);
  };
  $("samples").append(button);
}
$("save-wav").onclick = () => save(wav(whole(state.theirs), whole(state.mine)), "call.wav");
$("save-json").onclick = () => save(new Blob([JSON.stringify({ said: state.said }, null, 1)], { type: "application/json" }), "call.json");
fillDevices();
