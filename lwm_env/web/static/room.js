// A room: what is seen, who sits where, what can be done.

import { Connection, SPECTATOR, flag } from "./connection.js";
import { Input } from "./input.js";
import { $, accessToken, api, attempt, download, element, nameOf, toast } from "./page.js";
import { Recorder } from "./recorder.js";
import { drawKeys, seatRow } from "./seats.js";

const HISTORY_SECONDS = 60;

export class Room {
  constructor(room, world) {
    this.id = room.room;
    this.world = world;
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
    this.recorder = new Recorder(this.screen, nameOf(this.world));
    this.abort = new AbortController();
    this.#bind();
    drawKeys(this.world.actions);
    this.input = new Input(this.world.actions, (action) => this.seat !== null && this.connection.act(action));
    this.input.drawPad($("pad"));
    this.connection = new Connection(this.id, accessToken(), {
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
    this.recorder.stop();
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
    $("seats").replaceChildren(...state.seats.map((seat, index) => seatRow(seat, {
      mine: index === this.seat,
      playing,
      bots: this.world.bots,
      leave: () => this.#leave(),
      take: () => this.#join(seat.player, false),
      give: attempt((playedBy) => this.#give(seat.player, playedBy)),
    })));
    if (state.spectators) {
      $("seats").append(element("li", {}, element("small", { text: `${state.spectators} watching` })));
    }
    if (!this.flashing && this.shown) this.#drawVeil();
  }

  #leave() {
    sessionStorage.removeItem(this.#tokenKey);
    this.connection.open(null);
  }

  // Let people, nobody or a bot have a free seat.
  async #give(player, playedBy) {
    await api("PUT", `rooms/${this.id}/seats/${encodeURIComponent(player)}`, { body: { played_by: playedBy }, token: this.connection.token })
      .finally(() => this.#drawState());
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
    on("record", "click", () => this.recorder.toggle());
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
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.matches?.("input[type=number], select")) return;
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

  async #share() {
    const link = `${location.origin}/#room=${this.id}`;
    await navigator.clipboard.writeText(link).then(() => toast("The link to this room is copied."), () => prompt("The link to this room:", link));
  }
}
