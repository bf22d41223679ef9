// Keyboard, gamepad and touch: what is held becomes an action of the world.

const ALIASES = {
  arrowleft: ["left", "a"], arrowright: ["right", "d"], arrowup: ["up", "w"], arrowdown: ["down", "s"],
  a: ["a", "left"], d: ["d", "right"], w: ["w", "up"], s: ["s", "down"],
  " ": ["space"], escape: ["escape"], control: ["ctrl"],
};
const DIRECTIONS = { up: ["w", "up"], left: ["a", "left"], right: ["d", "right"], down: ["s", "down"] };
const ARROWS = { up: "↑", left: "←", right: "→", down: "↓" };

export class Input {
  // `spec` is the world's action record; `onAction` gets every change.
  constructor(spec, onAction) {
    this.spec = spec;
    this.onAction = onAction;
    this.sources = { keyboard: [], touch: [], gamepad: [] };  // held keys of the world, oldest first
    this.last = null;
    this.keys = spec.kind === "discrete" ? [...new Set(Object.values(spec.keys ?? {}).flat())] : Object.keys(DIRECTIONS);
    this.directions = Object.fromEntries(
      Object.entries(DIRECTIONS).map(([name, keys]) => [name, keys.find((key) => this.keys.includes(key))]).filter(([, key]) => key),
    );
    this.extra = this.keys.filter((key) => !Object.values(this.directions).includes(key));
    this.abort = new AbortController();
    const options = { signal: this.abort.signal };
    addEventListener("keydown", (event) => this.#onKey(event, true), options);
    addEventListener("keyup", (event) => this.#onKey(event, false), options);
    addEventListener("blur", () => this.release(), options);
    this.#pollGamepad();
  }

  close() {
    this.abort.abort();
  }

  release() {
    this.sources.keyboard = [];
    this.sources.touch = [];
    this.#update();
  }

  // The action of what is held now.
  get action() {
    const held = Object.values(this.sources).flat();
    return this.spec.kind === "discrete" ? this.#discrete(held) : this.#continuous(held);
  }

  // The meaning with the most keys, all of them held; of several the one pressed last.
  #discrete(held) {
    let best = { count: 0, age: -1, index: 0 };
    this.spec.meanings.forEach((meaning, index) => {
      const keys = this.spec.keys[meaning] ?? [];
      if (!keys.length || !keys.every((key) => held.includes(key))) return;
      const age = Math.max(...keys.map((key) => held.lastIndexOf(key)));
      if (keys.length > best.count || (keys.length === best.count && age > best.age)) best = { count: keys.length, age, index };
    });
    return best.index;
  }

  // The first number by left and right, the others one key each; a stick takes precedence.
  #continuous(held) {
    const { low, high } = this.spec;
    const rest = low.map((value, i) => Math.min(Math.max(0, value), high[i]));
    const action = [...rest];
    if (held.includes("left")) action[0] = low[0];
    if (held.includes("right")) action[0] = high[0];
    ["up", "down"].forEach((key, i) => { if (held.includes(key) && i + 1 < action.length) action[i + 1] = high[i + 1]; });
    if (this.stick) action[0] = this.stick > 0 ? this.stick * high[0] : -this.stick * low[0];
    return action;
  }

  #update() {
    const action = this.action;
    const text = JSON.stringify(action);
    if (text === this.last) return;
    this.last = text;
    this.onAction(action);
  }

  hold(source, key, down) {
    const held = this.sources[source].filter((other) => other !== key);
    this.sources[source] = down ? [...held, key] : held;
    this.#update();
  }

  #onKey(event, down) {
    if (down && (event.ctrlKey || event.metaKey || event.altKey)) return;
    if (event.target.matches?.("input[type=number], select")) return;
    const name = event.key.toLowerCase();
    const key = (ALIASES[name] ?? [name]).find((alias) => this.keys.includes(alias));
    if (!key) return;
    event.preventDefault();
    if (!event.repeat) this.hold("keyboard", key, down);
  }

  #pollGamepad() {
    if (this.abort.signal.aborted) return;
    const pad = navigator.getGamepads?.().find((candidate) => candidate?.connected);
    if (pad) {
      const [x, y] = pad.axes;
      const pressed = (number) => pad.buttons[number]?.pressed;
      const wanted = { left: x < -0.4 || pressed(14), right: x > 0.4 || pressed(15), up: y < -0.5 || pressed(12), down: y > 0.5 || pressed(13) };
      if (!this.extra.length && pressed(0)) wanted.up = true;  // A jumps where up does
      const held = Object.entries(wanted).filter(([name, on]) => on && this.directions[name]).map(([name]) => this.directions[name]);
      this.extra.forEach((key, number) => pressed(number) && held.push(key));
      this.stick = Math.abs(x) > 0.15 ? x : 0;
      this.sources.gamepad = held;
      this.#update();
    }
    requestAnimationFrame(() => this.#pollGamepad());
  }

  // Buttons for fingers, in `element`.
  drawPad(element) {
    const button = (key, text, name) => {
      const made = document.createElement("button");
      made.textContent = text;
      made.className = name;
      made.setAttribute("aria-label", name || key);
      const hold = (down) => (event) => {
        event.preventDefault();
        made.classList.toggle("held", down);
        this.hold("touch", key, down);
      };
      made.addEventListener("pointerdown", hold(true));
      for (const end of ["pointerup", "pointercancel", "pointerleave"]) made.addEventListener(end, hold(false));
      return made;
    };
    const cross = document.createElement("div");
    cross.className = "cross";
    for (const [name, key] of Object.entries(this.directions)) cross.append(button(key, ARROWS[name], name));
    const extra = document.createElement("div");
    extra.className = "extra";
    for (const key of this.extra) extra.append(button(key, key, ""));
    const { up, left } = this.directions;
    if (!this.extra.length && up && left) extra.append(button(up, "up", ""));  // for the other thumb
    element.replaceChildren(cross, extra);
  }
}
