// The page: a gallery of worlds, or a room. The address says which: #room=ID, #world=ID, or nothing.

import { Gallery } from "./gallery.js";
import { $, api, attempt, toast } from "./page.js";
import { Room } from "./room.js";

const hash = () => new URLSearchParams(location.hash.slice(1));

let worlds = [];
let view = null;  // what is shown now; has close()

const enter = (room) => new Room(room, worlds.find(({ id }) => id === room.world));

const navigate = attempt(async () => {
  view?.close();
  view = null;
  const wanted = hash();
  if (wanted.get("room")) {
    const room = await api("GET", `rooms/${encodeURIComponent(wanted.get("room"))}`).catch((error) => {
      toast(error.message);
      return null;
    });
    view = room ? enter(room) : new Gallery(worlds);
    return;
  }
  const world = worlds.find(({ id }) => id === wanted.get("world"));
  if (world) {
    const room = await api("POST", "rooms", { body: { world: world.id, public: world.players.length > 1 } });
    history.replaceState(null, "", `#room=${room.room}`);
    view = enter(room);
  } else {
    view = new Gallery(worlds);
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
