// The page: a gallery of worlds, and a room. The address says which: #room=ID, #world=ID, or nothing.

import { Connection, SPECTATOR, flag } from "./connection.js";
import { Input } from "./input.js";

const PREVIEW_MS = 260;
const HISTORY_SECONDS = 60;
const $ = (id) => document.getElementById(id);
const hash = () => new URLSearchParams(location.hash.slice(1));

let worlds = [];
let view = null;  // what is shown now; has close()
let access = sessionStorage.getItem("lwm-access");

// -- the server -------------------------------------------------------------------------------------------------------

async function api(method, path, { body, token, raw } = {}) {
  const headers = {};
  if (token) headers["X-Lwm-Token"] = token;
  if (access) headers.Authorization = `Bearer ${access}`;
  if (body !== undefined && !(body instanceof Blob)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  const answer = await fetch(`/api/${path}`, { method, headers, body });
  if (answer.status === 401 && askForAccess()) return api(method, path, { body, token, raw });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    const text = typeof told.detail === "string" ? told.detail : `the server answered ${answer.status}`;
    throw Object.assign(new Error(text), { status: answer.status });
  }
  if (raw) return answer.blob();
  return answer.status === 204 ? null : answer.json();
}

function askForAccess() {
  access = prompt("This server asks for its access token.");
  if (access) sessionStorage.setItem("lwm-access", access);
  return Boolean(access);
}

let toastTimer = 0;
function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 5000);
}

const attempt = (work) => async (...args) => {
  try {
    return await work(...args);
  } catch (error) {
    toast(error.message);
  }
};

function element(tag, { text, className, title, onclick } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (title) made.title = title;
  if (onclick) made.addEventListener("click", onclick);
  made.append(...children);
  return made;
}

function download(blob, name) {
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const nameOf = (world) => world.id.replace(/^LWM-/, "").replace(/-v\d+$/, "");

// -- the gallery ------------------------------------------------------------------------------------------------------

class Gallery {
  constructor() {
    $("gallery").hidden = false;
    $("figures").hidden = true;
    $("title").textContent = "";
    document.title = "lwm · dreamed worlds";
    this.pictures = worlds.map((world) => this.#card(world));
    this.timer = setInterval(() => this.#listRooms(), 3000);
    this.#listRooms();
    this.pictures.forEach((picture) => this.#dream(picture));
  }

  close() {
    this.closed = true;
    clearInterval(this.timer);
    $("gallery").hidden = true;
    $("cards").replaceChildren();
  }

  #card(world) {
    const picture = element("img");
    picture.alt = `${nameOf(world)}, dreamed live`;
    picture.dataset.world = world.id;
    const actions = element("div", { className: "actions" });
    actions.append(element("button", { text: "Play", className: "main", onclick: attempt(() => createRoom(world)) }));
    if (world.players.length > 1) {
      const others = Object.fromEntries(world.players.slice(1).map((player) => [player, "sticky"]));
      actions.append(element("button", { text: "Against a script", onclick: attempt(() => createRoom(world, others)) }));
    }
    const players = world.players.length > 1 ? `${world.players.length} players · ` : "";
    const size = `${world.frame_size[1]}×${world.frame_size[0]}`;
    $("cards").append(element("article", { className: "card" }, picture, element("div", { className: "text" },
      element("h3", { text: nameOf(world) }),
      element("p", { text: world.description }),
      element("small", { text: `${players}${size} · ${world.fps} steps/s` }),
      actions)));
    return picture;
  }

  async #dream(picture) {
    while (!this.closed) {
      const begin = performance.now();
      if (!document.hidden) {
        const blob = await api("GET", `worlds/${encodeURIComponent(picture.dataset.world)}/preview`, { raw: true }).catch(() => null);
        if (blob && !this.closed) {
          const old = picture.src;
          picture.src = URL.createObjectURL(blob);
          if (old) URL.revokeObjectURL(old);
        }
      }
      await new Promise((done) => setTimeout(done, Math.max(60, PREVIEW_MS - (performance.now() - begin))));
    }
  }

  async #listRooms() {
    const rooms = await api("GET", "rooms").catch(() => []);
    $("open-rooms").hidden = !rooms.length;
    $("rooms").replaceChildren(...rooms.map((room) => {
      const free = room.seats.filter((seat) => seat.state === "free" && seat.played_by === "human").length;
      const told = `${room.world.replace(/^LWM-/, "")} · ${free ? `${free} free` : "full"}`;
      return element("li", {}, element("span", { text: told }),
        element("button", { text: free ? "Join" : "Watch", onclick: () => { location.hash = `room=${room.room}`; } }));
    }));
  }
}

async function createRoom(world, seats = {}) {
  const room = await api("POST", "rooms", { body: { world: world.id, seats, public: world.players.length > 1 } });
  location.hash = `room=${room.room}`;
}

// -- a room -----------------------------------------------------------------------------------------------------------

class Room {
  constructor(room) {
    this.id = room.room;
    this.world = worlds.find((world) => world.id === room.world);
    Object.assign(this, { state: room, seat: null, shown: 0, score: 0, history: [], arrivals: [], latencies: [], kept: [] });
    this.screen = $("screen");
    [this.screen.height, this.screen.width] = this.world.frame_size;
    this.context = this.screen.getContext("2d");
    $("room").hidden = false;
    $("figures").hidden = false;
    $("kept-section").hidden = true;
    $("kept").replaceChildren();
    $("title").textContent = nameOf(this.world);
    document.title = `lwm · ${nameOf(this.world)}`;
    this.abort = new AbortController();
    this.#bind();
    this.#drawKeys();
    this.input = new Input(this.world.actions, (action) => this.seat !== null && this.connection.act(action));
    this.input.drawPad($("pad"));
    this.connection = new Connection(this.id, access, {
      frame: (frame) => this.#onFrame(frame),
      event: (event) => this.#onEvent(event),
      status: (text, live) => this.#status(text, live),
      lost: (why, reason) => this.#lost(why, reason),
    });
    this.#join();
    this.#veil("Waking the dream …");
  }

  close() {
    this.abort.abort();
    this.input.close();
    this.connection.close();
    this.recorder?.stop();
    $("room").hidden = true;
  }

  get #tokenKey() { return `lwm-seat-${this.id}`; }

  // Come back to the seat we had, else take a free one, else watch.
  async #join(player = null, again = true) {
    const old = sessionStorage.getItem(this.#tokenKey);
    if (old && again) {
      this.connection.open(old);
      return;
    }
    const isFree = (seat) => seat.played_by === "human" && seat.state === "free" && (!player || seat.player === player);
    const seat = this.state.seats.some(isFree) && await api("POST", `rooms/${this.id}/seats`, { body: { player } }).catch((error) => {
      if (error.status !== 409) toast(error.message);
      return null;
    });
    this.connection.open(seat ? seat.token : null);
  }

  #lost(why, reason) {
    if (why === "token") {  // our seat was given away meanwhile
      sessionStorage.removeItem(this.#tokenKey);
      this.#join(null, false);
    } else if (why === "room") {
      this.#veil("This room was closed.");
    } else if (why === "replaced") {
      sessionStorage.removeItem(this.#tokenKey);
      this.#veil("You play in another window now.");
    } else {
      this.#veil(reason || "The connection was closed.");
    }
  }

  #onEvent(event) {
    if (event.type === "attached") {
      this.seat = event.seat === SPECTATOR ? null : event.seat;
      if (event.token) sessionStorage.setItem(this.#tokenKey, event.token);
      this.shown = 0;
    }
    if (event.type === "error") toast(event.message);
    if (event.type === "bye") this.#veil("The server is being restarted …");
    if (event.seats) {
      this.state = event;
      this.#drawState();
    }
  }

  async #onFrame(frame) {
    const now = performance.now();
    this.arrivals.push(now);
    if (frame.latency !== null) this.latencies.push([now, frame.latency]);
    const bitmap = await createImageBitmap(frame.blob);
    if (frame.id <= this.shown) return;
    this.shown = frame.id;
    if (frame.flags & flag.first) this.score = 0;
    this.score += frame.reward;
    const ended = frame.flags & (flag.terminated | flag.truncated);
    this.history.push({ id: frame.id, at: now, blob: frame.blob, score: this.score });
    while (this.history.length && now - this.history[0].at > HISTORY_SECONDS * 1000) this.history.shift();
    if (this.dragging) return;
    this.context.drawImage(bitmap, 0, 0);
    this.screen.dataset.frame = frame.id;
    $("score").textContent = Number(this.score.toFixed(2));
    this.#drawTimeline();
    if (ended) this.#flash(frame.flags & flag.terminated ? "The episode ended" : "Time is up");
    else if (!this.flashing) this.#drawVeil();
    this.#drawFigures(now);
  }

  // -- drawing

  #status(text, live) {
    $("status").textContent = text;
    $("status").classList.toggle("live", live);
    if (!live && text === "reconnecting") this.#veil("Reconnecting …");
  }

  #drawFigures(now) {
    const recent = (entries, at, seconds) => { while (entries.length && now - at(entries[0]) > seconds * 1000) entries.shift(); };
    recent(this.arrivals, (at) => at, 2);
    recent(this.latencies, ([at]) => at, 5);
    if (now - (this.figuresAt ?? 0) < 400) return;
    this.figuresAt = now;
    const span = (now - this.arrivals[0]) / 1000;
    $("fps").textContent = this.arrivals.length > 2 && span > 0.5 ? ((this.arrivals.length - 1) / span).toFixed(1) : "–";
    const sorted = this.latencies.map(([, ms]) => ms).sort((a, b) => a - b);
    if (sorted.length) $("latency").textContent = Math.round(sorted[sorted.length >> 1]);
  }

  #veil(text) {
    $("veil").textContent = text;
    $("veil").classList.toggle("shown", Boolean(text));
  }

  #flash(text) {
    this.#veil(text);
    clearTimeout(this.flashing);
    this.flashing = setTimeout(() => { this.flashing = 0; this.#drawVeil(); }, 900);
  }

  #drawVeil() {
    if (this.state.paused) this.#veil("Paused");
    else this.#veil("");
  }

  #drawTimeline() {
    if (this.dragging) return;
    const slider = $("timeline");
    slider.max = Math.max(0, this.history.length - 1);
    slider.value = slider.max;
    $("timeline-label").textContent = "now";
  }

  #drawState() {
    const { state } = this;
    const playing = this.seat !== null;
    $("pause").setAttribute("aria-pressed", state.paused);
    $("pause").lastElementChild.textContent = state.paused ? "Go on" : "Pause";
    for (const id of ["pause", "restart", "snapshot", "picture", "timeline", "seed", "dice", "temperature", "save-mp4", "save-gif"]) $(id).disabled = !playing;
    $("pad").hidden = !playing;
    if (document.activeElement !== $("seed")) $("seed").value = state.seed;
    if (document.activeElement !== $("temperature")) $("temperature").value = state.temperature;
    $("temperature-label").textContent = state.temperature.toFixed(2);
    $("seats").replaceChildren(...state.seats.map((seat, index) => this.#seatRow(seat, index)));
    if (state.spectators) {
      $("seats").append(element("li", {}, element("small", { text: `${state.spectators} watching` })));
    }
    if (!this.flashing && this.shown) this.#drawVeil();
  }

  #seatRow(seat, index) {
    const mine = index === this.seat;
    const script = seat.played_by !== "human";
    const told = mine ? "you" : script ? `played by a script (${seat.played_by})` : seat.state;
    const row = element("li", {},
      element("span", { className: `dot ${script ? "script" : seat.state}` }),
      element("span", { className: "who" }, element("span", { text: seat.player }), element("small", { text: told })));
    if (mine) row.append(element("button", { text: "Leave", onclick: () => this.#leave() }));
    else if (!script && seat.state === "free" && this.seat === null) {
      row.append(element("button", { text: "Take", onclick: () => this.#join(seat.player, false) }));
    }
    return row;
  }

  #leave() {
    sessionStorage.removeItem(this.#tokenKey);
    this.connection.open(null);
  }

  #drawKeys() {
    const { actions } = this.world;
    const rows = actions.kind === "discrete"
      ? actions.meanings.filter((meaning) => actions.keys[meaning]?.length).map((meaning) => [meaning, actions.keys[meaning]])
      : [["left / right", ["←", "→"]], ["up / down", ["↑", "↓"]]];
    const own = rows.filter(([, keys]) => keys.length === 1);
    const lines = (own.length ? own : rows).map(([meaning, keys]) => [meaning.toLowerCase(), this.#withArrow(keys)]);
    lines.push(["pause", ["P"]], ["next episode", ["R"]], ["keep this moment", ["K"]]);
    $("keys").replaceChildren(...lines.flatMap(([meaning, keys]) => [
      element("dt", { text: meaning }),
      element("dd", {}, ...keys.map((key) => element("kbd", { text: key.length === 1 ? key.toUpperCase() : key }))),
    ]));
  }

  // Arrow keys do what W, A, S and D do.
  #withArrow(keys) {
    const arrow = { w: "↑", a: "←", s: "↓", d: "→", up: "↑", left: "←", down: "↓", right: "→" }[keys[0]];
    return keys.length === 1 && arrow ? [...(keys[0].length === 1 ? keys : []), arrow] : keys;
  }

  // -- controls

  #bind() {
    const options = { signal: this.abort.signal };
    const on = (id, kind, work) => $(id).addEventListener(kind, attempt(work), options);
    on("pause", "click", () => this.#pause(!this.state.paused));
    on("restart", "click", () => this.connection.send({ type: "restart" }));
    on("snapshot", "click", () => this.#keep());
    on("picture", "click", () => $("file").click());
    on("file", "change", ({ target }) => { const [file] = target.files; target.value = ""; return file && this.#startFrom(file); });
    on("record", "click", () => this.#record());
    on("share", "click", () => this.#share());
    on("timeline", "input", ({ target }) => this.#drag(Number(target.value)));
    on("timeline", "change", ({ target }) => this.#rewind(Number(target.value)));
    on("seed", "change", ({ target }) => this.#sow(Number(target.value)));
    on("dice", "click", () => this.#sow(Math.floor(Math.random() * 1e6)));
    on("temperature", "input", ({ target }) => { $("temperature-label").textContent = Number(target.value).toFixed(2); });
    on("temperature", "change", ({ target }) => this.connection.send({ type: "temperature", value: Number(target.value) }));
    on("smooth", "change", ({ target }) => this.screen.classList.toggle("smooth", target.checked));
    on("save-mp4", "click", () => this.#save("mp4"));
    on("save-gif", "click", () => this.#save("gif"));
    addEventListener("keydown", (event) => this.#shortcut(event), options);
    this.#bindDrop(options);
  }

  #shortcut(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.matches?.("input[type=number]")) return;
    const name = { p: "pause", r: "restart", k: "snapshot" }[event.key.toLowerCase()];
    if (name && !this.input.keys.includes(event.key.toLowerCase()) && !$(name).disabled) $(name).click();
  }

  #bindDrop(options) {
    const show = (shown) => { $("drop").hidden = !shown; };
    addEventListener("dragover", (event) => { event.preventDefault(); show(this.seat !== null); }, options);
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) show(false); }, options);
    addEventListener("drop", attempt((event) => {
      event.preventDefault();
      show(false);
      const [file] = event.dataTransfer.files;
      return file && this.#startFrom(file);
    }), options);
  }

  #pause(paused) {
    this.connection.send({ type: "pause", paused });
  }

  #sow(seed) {
    if (Number.isSafeInteger(seed) && seed >= 0) this.connection.send({ type: "restart", seed });
  }

  async #drag(index) {
    if (!this.dragging) this.#pause(true);
    this.dragging = true;
    const moment = this.history[index];
    const seconds = (this.history.at(-1).at - moment.at) / 1000;
    $("timeline-label").textContent = seconds < 0.05 ? "now" : `−${seconds.toFixed(1)} s`;
    const bitmap = await createImageBitmap(moment.blob);
    if (this.dragging && this.history[$("timeline").value] === moment) this.context.drawImage(bitmap, 0, 0);
  }

  #rewind(index) {
    const moment = this.history[index];
    this.dragging = false;
    if (moment && index < this.history.length - 1) {
      this.history.length = index + 1;
      this.connection.send({ type: "rewind", frame: moment.id });
    }
    this.#pause(false);
    this.screen.focus();
  }

  async #keep() {
    const picture = element("canvas");
    [picture.width, picture.height] = [this.screen.width, this.screen.height];
    picture.getContext("2d").drawImage(this.screen, 0, 0);
    const state = await api("GET", `rooms/${this.id}/snapshot`, { token: this.connection.token, raw: true });
    const back = attempt(() => api("POST", `rooms/${this.id}/restore`, { body: state, token: this.connection.token }));
    $("kept").prepend(element("button", { title: "Go back to this moment", onclick: back }, picture));
    $("kept-section").hidden = false;
  }

  async #startFrom(file) {
    if (this.seat === null) throw new Error("Take a seat first.");
    const { warning } = await api("POST", `rooms/${this.id}/prompt`, { body: file, token: this.connection.token });
    this.#flash("Dreaming on from your picture");
    if (warning) toast(warning);
  }

  async #save(format) {
    toast("Encoding the last minute …");
    const path = `rooms/${this.id}/recording?format=${format}`;
    download(await api("GET", path, { token: this.connection.token, raw: true }), `${nameOf(this.world)}.${format}`);
    $("toast").hidden = true;
  }

  #record() {
    if (this.recorder) {
      this.recorder.stop();
      return;
    }
    const stream = this.screen.captureStream();
    const type = ["video/webm;codecs=vp9", "video/webm", "video/mp4"].find((kind) => MediaRecorder.isTypeSupported(kind));
    const parts = [];
    this.recorder = new MediaRecorder(stream, { mimeType: type, videoBitsPerSecond: 4_000_000 });
    this.recorder.ondataavailable = ({ data }) => parts.push(data);
    this.recorder.onstop = () => {
      this.recorder = null;
      this.#drawRecording(false);
      download(new Blob(parts, { type }), `${nameOf(this.world)}.${type.includes("mp4") ? "mp4" : "webm"}`);
    };
    this.recorder.start();
    this.#drawRecording(true);
  }

  #drawRecording(on) {
    $("record").setAttribute("aria-pressed", on);
    $("record").lastElementChild.textContent = on ? "Stop" : "Record";
    $("stage").classList.toggle("recording", on);
  }

  async #share() {
    const link = `${location.origin}/#room=${this.id}`;
    await navigator.clipboard.writeText(link).then(() => toast("The link to this room is copied."), () => prompt("The link to this room:", link));
  }
}

// -- where we are -----------------------------------------------------------------------------------------------------

const navigate = attempt(async () => {
  view?.close();
  view = null;
  const wanted = hash();
  if (wanted.get("room")) {
    const room = await api("GET", `rooms/${encodeURIComponent(wanted.get("room"))}`).catch((error) => {
      toast(error.message);
      return null;
    });
    view = room ? new Room(room) : new Gallery();
    return;
  }
  const world = worlds.find(({ id }) => id === wanted.get("world"));
  if (world) {
    const room = await api("POST", "rooms", { body: { world: world.id, public: world.players.length > 1 } });
    history.replaceState(null, "", `#room=${room.room}`);
    view = new Room(room);
  } else {
    view = new Gallery();
  }
});

// The page may be here before the engine is.
async function begin() {
  worlds = await api("GET", "worlds");
  while (!(await fetch("/readyz").catch(() => ({ ok: false }))).ok) {
    $("title").textContent = "waking up …";
    await new Promise((done) => setTimeout(done, 300));
  }
  $("title").textContent = "";
  addEventListener("hashchange", navigate);
  await navigate();
}

attempt(begin)();
