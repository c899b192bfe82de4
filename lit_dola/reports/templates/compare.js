const about = JSON.parse(document.getElementById("about").textContent);
const byId = (id) => document.getElementById(id);
const rows = prompts.flatMap((prompt) => {
  const text = prompt.querySelector("h2 [dir]").textContent;
  return [...prompt.querySelectorAll(".row")].map((row) => ({
    prompt_index: Number(prompt.dataset.index),
    image_index: Number(row.dataset.index),
    prompt: text,
    splits: JSON.parse(row.dataset.splits ?? "{}"),
    row,
  }));
});

// The address keeps what is shown, so that a reload or a link shows the same

const KEPT = ["view", "a", "b", "seed", "gain"];

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of KEPT) {
    const field = byId(name);
    const before = field.value;
    if (given.has(name)) field.value = given.get(name);
    if (!field.value) field.value = before; // not one of its values
  }
  if (byId("a").value === byId("b").value) byId("b").value = byId("a").value === "0" ? "1" : "0";
}

function writeAddress() {
  const shown = new URLSearchParams(KEPT.map((name) => [name, byId(name).value]));
  history.replaceState(null, "", `#${shown}`);
}

// Two runs at once

let chosen; // the pair before the last change

function setting() {
  return { a: Number(byId("a").value), b: Number(byId("b").value), seed: byId("seed").value };
}

function choosePair() {
  chosen = setting();
  const { a, b } = chosen;
  const pair = `${Math.min(a, b)}-${Math.max(a, b)}`;
  for (const { row, splits } of rows) {
    // The slider opens where the two differ most.
    if (pair in splits) row.style.setProperty("--at", `${splits[pair]}%`);
    else row.style.removeProperty("--at");
    [...row.children].forEach((figure, run) => {
      figure.classList.toggle("a", run === a);
      figure.classList.toggle("b", run === b);
    });
  }
  showPair();
}

function showView() {
  document.body.dataset.view = byId("view").value;
  document.body.style.setProperty("--gain", byId("gain").value);
  const share = Math.round(100 / byId("gain").value);
  byId("gain-end").textContent = `${share} % of the scale apart, or more`;
  writeAddress();
}

addEventListener("hashchange", () => {
  readAddress();
  choosePair();
  showView();
});
byId("view").addEventListener("change", () => {
  showView();
  if (byId("view").value === "blind") byId("blind").focus();
});
for (const [changed, other] of [["a", "b"], ["b", "a"]]) {
  byId(changed).addEventListener("change", () => {
    // A run is not compared with itself: the two swap.
    if (byId(other).value === byId(changed).value) byId(other).value = chosen[changed];
    choosePair();
  });
}
byId("split").addEventListener("input", (event) => {
  for (const { row } of rows) row.style.removeProperty("--at");
  document.body.style.setProperty("--split", `${event.target.value}%`);
});
byId("gain").addEventListener("input", showView);
byId("content").addEventListener("pointermove", (event) => {
  const row = event.target.closest(".row");
  if (!row || document.body.dataset.view !== "slider") return;
  const box = row.getBoundingClientRect();
  const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  row.style.setProperty("--at", `${100 * share}%`);
});

// Blind votes, kept in this browser by page, runs and seed

let order = [];
let votes = [];
let ended = false; // by the user, before every pair has a vote

function hash(text) {
  // FNV-1a, then the finalizer of MurmurHash3: 32 bits without visible order.
  let h = 2166136261;
  for (const character of text) h = Math.imul(h ^ character.codePointAt(0), 16777619);
  h = Math.imul(h ^ (h >>> 16), 2246822507);
  h = Math.imul(h ^ (h >>> 13), 3266489909);
  return (h ^ (h >>> 16)) >>> 0;
}

function storageKey() {
  const { a, b, seed } = setting();
  return `lit-dola ${about.page} ${a} ${b} ${seed}`;
}

let kept = true; // some browsers store nothing for pages opened from files

function recall() {
  try {
    return JSON.parse(localStorage.getItem(storageKey()) ?? "[]");
  } catch {
    kept = false;
    return [];
  }
}

function remember() {
  try {
    localStorage.setItem(storageKey(), JSON.stringify(votes));
  } catch {
    kept = false;
  }
}

function showPair() {
  const { a, b, seed } = setting();
  const keyed = rows.map((pair) => {
    const key = `${seed} ${pair.prompt_index} ${pair.image_index}`;
    const [left, right] = hash(`side ${key}`) % 2 ? [b, a] : [a, b];
    return { ...pair, left, right, place: hash(`order ${key}`) };
  });
  order = keyed.sort((one, other) => one.place - other.place);
  votes = recall();
  ended = false;
  writeAddress();
  showNext();
}

function showNext() {
  const pair = ended ? undefined : order[votes.length];
  for (const side of ["left", "right", "tie"]) {
    byId(side).disabled = !pair;
    byId(side).hidden = !pair;
  }
  byId("undo").disabled = votes.length === 0 || ended;
  byId("end").hidden = votes.length === order.length;
  byId("end").textContent = ended ? "Go on voting" : "End, and show the result";
  const warning = kept ? "" : ". This browser does not store them: export before you leave";
  byId("progress").textContent = `${votes.length} of ${order.length} votes cast${warning}`;
  if (pair) {
    byId("blind-prompt").textContent = pair.prompt;
    for (const side of ["left", "right"]) {
      const shown = pair.row.children[pair[side]].querySelector("img");
      byId(side).querySelector("img").src = shown.src;
    }
  } else {
    byId("blind-prompt").textContent = ended ? "" : "Every pair has a vote.";
  }
  byId("result").hidden = Boolean(pair);
  if (!pair) showResult();
}

function vote(choice) {
  const pair = order[votes.length];
  if (!pair || byId(choice).disabled) return;
  const { prompt_index, image_index, prompt, left, right } = pair;
  const winner = choice === "tie" ? null : about.runs[pair[choice]].name;
  const names = { left: about.runs[left].name, right: about.runs[right].name };
  votes.push({ prompt_index, image_index, prompt, ...names, choice, winner });
  remember();
  showNext();
  if (votes.length === order.length) byId("result").focus();
}

function undo() {
  if (byId("undo").disabled) return;
  votes.pop();
  remember();
  showNext();
}

function summary() {
  const { a, b } = setting();
  const [nameA, nameB] = [about.runs[a].name, about.runs[b].name];
  const wins = (name) => votes.filter((one) => one.winner === name).length;
  const [winsA, winsB] = [wins(nameA), wins(nameB)];
  const decided = winsA + winsB;
  const result = { a: nameA, b: nameB, wins_a: winsA, wins_b: winsB, ties: votes.length - decided };
  if (decided) Object.assign(result, { win_rate_b: winsB / decided, ...wilson(winsB, decided) });
  return result;
}

function wilson(wins, decided) {
  // Wilson's score interval (1927), 95 %, which is also valid for few votes.
  const z = 1.959964;
  const rate = wins / decided;
  const scale = 1 + z ** 2 / decided;
  const middle = (rate + z ** 2 / (2 * decided)) / scale;
  const half = (z / scale) * Math.sqrt((rate * (1 - rate)) / decided + (z / (2 * decided)) ** 2);
  return { low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

function showResult() {
  const { a, b, wins_a, wins_b, ties, win_rate_b, low, high } = summary();
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const lines = { [`A: ${a}`]: wins_a, [`B: ${b}`]: wins_b, ties };
  lines["B wins"] =
    win_rate_b === undefined
      ? "nothing decided yet"
      : `${percent(win_rate_b)} of those decided, 95 % interval ${percent(low)} to ${percent(high)}`;
  describe(byId("result").querySelector("dl"), lines);
}

for (const choice of ["left", "right", "tie"]) {
  byId(choice).addEventListener("click", () => vote(choice));
}
byId("undo").addEventListener("click", undo);
byId("end").addEventListener("click", () => {
  ended = !ended;
  showNext();
  byId(ended ? "result" : "blind").focus();
});
addEventListener("storage", (event) => {
  // Votes from another tab, or the last ones before a reload, which the browser stored late.
  if (event.key === storageKey()) showPair();
});
byId("seed").addEventListener("change", showPair);
byId("export").addEventListener("click", () => {
  const { a, b, seed } = setting();
  const runs = [about.runs[a], about.runs[b]];
  const content = { runs, seed: Number(seed), pairs: order.length, votes, summary: summary() };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(
    new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }),
  );
  link.download = "votes.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
document.addEventListener("keydown", (event) => {
  if (document.body.dataset.view !== "blind" || event.target.closest("input, select")) return;
  const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" }[event.key];
  if (choice) event.preventDefault();
  if (choice) vote(choice);
  if (event.key === "u") undo();
});
readAddress();
choosePair();
showView();
