// Who sits where, and which keys do what.

import { $, element } from "./page.js";

const nameOfPlayer = (playedBy) => ({ human: "a person", neutral: "nobody" })[playedBy] ?? `bot: ${playedBy}`;

// One row of the list of seats. `on` has: mine, playing, bots, leave(), take(), give(playedBy).
export function seatRow(seat, on) {
  const open = seat.played_by === "human";
  const told = on.mine ? "you" : open ? seat.state : `played by ${nameOfPlayer(seat.played_by)}`;
  const row = element("li", {},
    element("span", { className: `dot ${open ? seat.state : "script"}` }),
    element("span", { className: "who" }, element("span", { text: seat.player }), element("small", { text: told })));
  if (on.mine) row.append(element("button", { text: "Leave", onclick: on.leave }));
  else if (on.playing && seat.state === "free") row.append(chooser(seat, on));
  else if (!on.playing && open && seat.state === "free") row.append(element("button", { text: "Take", onclick: on.take }));
  return row;
}

function chooser(seat, on) {
  const select = element("select", { title: `Who plays ${seat.player}` });
  select.setAttribute("aria-label", `Who plays ${seat.player}`);
  for (const playedBy of ["human", ...on.bots, "neutral"]) {
    const option = element("option", { text: nameOfPlayer(playedBy) });
    option.value = playedBy;
    option.selected = playedBy === seat.played_by;
    select.append(option);
  }
  select.addEventListener("change", () => { select.blur(); on.give(select.value); });
  return select;
}

export function drawKeys(actions) {
  const rows = actions.kind === "discrete"
    ? actions.meanings.filter((meaning) => actions.keys[meaning]?.length).map((meaning) => [meaning, actions.keys[meaning]])
    : [["left / right", ["←", "→"]], ["up / down", ["↑", "↓"]]];
  const own = rows.filter(([, keys]) => keys.length === 1);
  const lines = (own.length ? own : rows).map(([meaning, keys]) => [meaning.toLowerCase(), withArrow(keys)]);
  lines.push(["pause", ["P"]], ["next episode", ["R"]], ["keep this moment", ["K"]]);
  $("keys").replaceChildren(...lines.flatMap(([meaning, keys]) => [
    element("dt", { text: meaning }),
    element("dd", {}, ...keys.map((key) => element("kbd", { text: key.length === 1 ? key.toUpperCase() : key }))),
  ]));
}

// Arrow keys do what W, A, S and D do.
function withArrow(keys) {
  const arrow = { w: "↑", a: "←", s: "↓", d: "→", up: "↑", left: "←", down: "↓", right: "→" }[keys[0]];
  return keys.length === 1 && arrow ? [...(keys[0].length === 1 ? keys : []), arrow] : keys;
}
