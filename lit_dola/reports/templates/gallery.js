const settings = JSON.parse(document.getElementById("settings").textContent);
const viewer = document.getElementById("viewer");
const image = document.getElementById("viewer-image");
let opened = null;

function show(link) {
  opened = link;
  const prompt = link.closest(".prompt");
  const text = prompt.querySelector("h2 [dir]").textContent;
  image.src = document.getElementById("viewer-file").href = link.href;
  const inspection = document.getElementById("viewer-inspection");
  inspection.hidden = !link.dataset.inspection;
  if (link.dataset.inspection) {
    inspection.href = inspection.firstElementChild.src = link.dataset.inspection;
  }
  image.alt = link.firstElementChild.alt;
  document.getElementById("viewer-prompt").textContent = text;
  describe(document.getElementById("viewer-metadata"), {
    file: decodeURIComponent(link.getAttribute("href")),
    prompt_index: Number(prompt.dataset.index),
    image_index: Number(link.dataset.index),
    ...JSON.parse(link.closest(".images").dataset.metadata),
    ...settings,
    ...JSON.parse(link.dataset.own ?? "{}"),
  });
  if (!viewer.open) viewer.showModal();
}

function step(by) {
  const links = [...document.querySelectorAll(".prompt:not([hidden]) .images a")];
  const link = links[links.indexOf(opened) + by];
  if (link) show(link);
}

document.getElementById("content").addEventListener("click", (event) => {
  const link = event.target.closest(".images a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link);
});
document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("next").addEventListener("click", () => step(1));
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
viewer.addEventListener("close", () => opened.focus());
document.getElementById("size").addEventListener("input", (event) => {
  document.documentElement.style.setProperty("--size", `${event.target.value}rem`);
});
document.getElementById("best")?.addEventListener("change", (event) => {
  document.body.classList.toggle("best-alone", event.target.checked);
});
