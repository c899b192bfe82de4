const byId = (id) => document.getElementById(id);
const settings = JSON.parse(byId("settings").textContent);
const known = JSON.parse(byId("known").textContent);
const viewer = byId("viewer");
const MAIN = ["dola", "alpha", "strength", "layer", "cfg_weight", "temperature", "seed"];
let opened = null;
let command = "";

// Open the dialog, or change what it shows

function show(link) {
  opened = link;
  const prompt = link.closest(".prompt");
  const text = prompt.querySelector("h2 [dir]").textContent;
  const links = shownLinks();
  byId("viewer-place").textContent = `${links.indexOf(link) + 1} of ${links.length}`;
  byId("previous").disabled = link === links[0];
  byId("next").disabled = link === links[links.length - 1];
  byId("viewer-image").src = byId("viewer-file").href = link.href;
  byId("viewer-image").alt = link.firstElementChild.alt;
  const inspection = byId("viewer-inspection");
  inspection.hidden = !link.dataset.inspection;
  if (link.dataset.inspection) inspection.firstElementChild.src = link.dataset.inspection;
  byId("viewer-prompt").textContent = text;
  const own = { ...settings, ...JSON.parse(link.dataset.own ?? "{}") };
  const where = { prompt_index: Number(prompt.dataset.index), image_index: Number(link.dataset.index) };
  const hidden = own.dola === false ? known.only_with_dola : [];
  const pick = (names) => Object.fromEntries(names.map((name) => [name, own[name]]));
  const names = Object.keys(own).filter((name) => !hidden.includes(name));
  describe(byId("viewer-main"), { ...pick(MAIN.filter((name) => names.includes(name))), ...where });
  describe(byId("viewer-rest"), {
    file: decodeURIComponent(link.getAttribute("href")),
    ...JSON.parse(link.closest(".images").dataset.metadata),
    ...pick(names.filter((name) => !MAIN.includes(name))),
  });
  command = commandFor(text, where, own);
  byId("viewer-command").textContent = command;
  if (!viewer.open) viewer.showModal();
}

function shownLinks() {
  const best = document.body.classList.contains("best-alone") ? "li.best " : "";
  return [...document.querySelectorAll(`.prompt:not([hidden]) .images ${best}a`)];
}

function step(by) {
  const links = shownLinks();
  const link = links[links.indexOf(opened) + by];
  if (link) show(link);
}

// The command that makes an image again: every setting that shaped it

function commandFor(text, { prompt_index, image_index }, own) {
  const parts = ["lit-dola predict"];
  for (const [name, value] of Object.entries(own)) {
    const isDefault = name in known.not_given && known.not_given[name] === value;
    if (name in known.flags && !isDefault) parts.push(`${known.flags[name]} ${quoted(value)}`);
  }
  parts.push(`--data.prompts ${quoted({ [prompt_index]: text })}`);
  parts.push(`--data.images ${quoted([image_index])}`);
  parts.push("--writer.output_dir outputs/again");
  return parts.join(" ");
}

function quoted(value) {
  // Escaped are the characters of JSON that YAML, as which it is read, does not keep as they are.
  const text = typeof value === "string" ? value
    : JSON.stringify(value).replace(/[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]/g,
      (it) => `\\u${it.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return /^[\w.,:/@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

async function copy(button, text) {
  const label = button.dataset.label ?? (button.dataset.label = button.textContent);
  button.textContent = (await toClipboard(text)) ? "Copied" : "Select it below, and copy";
  setTimeout(() => (button.textContent = label), 2000);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Not every browser lets a page that is a file use the clipboard like this.
    const area = document.createElement("textarea");
    area.value = text;
    viewer.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

byId("content").addEventListener("click", (event) => {
  const link = event.target.closest(".images a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link);
});
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("copy-prompt").addEventListener("click", (event) => copy(event.currentTarget, byId("viewer-prompt").textContent));
byId("copy-command").addEventListener("click", (event) => copy(event.currentTarget, command));
byId("viewer-inspection").addEventListener("click", ({ currentTarget: button }) => {
  button.setAttribute("aria-expanded", button.getAttribute("aria-expanded") !== "true");
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
viewer.addEventListener("close", () => opened.focus());
byId("size").addEventListener("input", (event) => {
  document.body.classList.add("sized");
  document.documentElement.style.setProperty("--size", `${event.target.value}rem`);
});
byId("best")?.addEventListener("change", (event) => {
  document.body.classList.toggle("best-alone", event.target.checked);
});
