"use strict";
const searchBox = document.getElementById("search");
const none = document.getElementById("none");
const found = document.getElementById("found");
const prompts = [...document.querySelectorAll(".prompt")];
const texts = prompts.map((prompt) => prompt.dataset.text.toLowerCase());

// A page may show only some prompts.
let filter = () => true;

function search() {
  const words = searchBox.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  prompts.forEach((prompt, place) => {
    const hit = filter(prompt) && words.every((word) => texts[place].includes(word));
    prompt.hidden = !hit;
    shown += hit;
  });
  found.textContent = `${shown} of ${prompts.length} ${document.body.dataset.entries ?? "prompts"}`;
  none.hidden = shown > 0 || prompts.length === 0;
}

searchBox.addEventListener("input", search);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, select, dialog")) {
    event.preventDefault();
    searchBox.focus();
  }
});
search();

// Fill a <dl>, with texts as they are, other values as JSON, and without what is not set.
function describe(list, values) {
  list.replaceChildren();
  for (const [name, value] of Object.entries(values)) {
    if (value === null) continue;
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = name;
    description.textContent = typeof value === "string" ? value : JSON.stringify(value);
    description.dir = "auto";
    list.append(term, description);
  }
}
