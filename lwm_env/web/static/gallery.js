// The worlds, dreamed live, and the rooms that are open.

import { $, api, attempt, element, nameOf } from "./page.js";

const PREVIEW_MS = 260;

export class Gallery {
  constructor(worlds) {
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
      const others = Object.fromEntries(world.players.slice(1).map((player) => [player, world.bots[0]]));
      actions.append(element("button", { text: "Against a bot", onclick: attempt(() => createRoom(world, others)) }));
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
