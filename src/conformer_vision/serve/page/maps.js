// Where the model looks: heat maps of both branches, and a slider through the blocks.

import { ask, body } from "./api.js";
import { bars, element, timing } from "./parts.js";

const HEADS = { fused: "Both together", conv: "Convolution branch", trans: "Transformer branch" };
const LAYERS = [["conv", "Feature map"], ["trans", "Patch tokens"], ["attention", "Attention of the class token"]];

/**
 * Fill a panel with the maps of an image.
 * @param {HTMLElement} panel
 * @param {File} file
 * @param {{photo: string | null, signal: AbortSignal, say: (text: string) => void}} context
 */
export async function showMaps(panel, file, context) {
  const waiting = (seconds) => context.say(seconds ? `The server is busy. Trying again in ${seconds} s …` : "Looking …");
  const load = async (label) => {
    const began = performance.now();
    const query = label === null ? "" : `?${new URLSearchParams({ class: label })}`;
    const found = await ask(`explain${query}`, { method: "POST", body: body(file), signal: context.signal }, waiting);
    return { ...found, all: performance.now() - began };
  };
  let found = await load(null);
  panel.replaceChildren(document.getElementById("maps").content.cloneNode(true));
  const select = panel.querySelector("select");
  for (const { label, probabilities } of found.classes) {
    const share = (100 * probabilities.fused).toFixed(1);
    select.append(element("option", { value: label }, `${label} (${share} %)`));
  }
  select.value = found.class.label;
  show(panel, found, file.name, context.photo);
  select.addEventListener("change", async () => {
    select.disabled = true;
    context.say("Looking …");
    try {
      found = await load(select.value);
      show(panel, found, file.name, context.photo);
      context.say(`Where the model looks for ${select.value} is shown.`);
    } catch (error) {
      if (error.name === "AbortError") return;
      context.say(error.message);
      select.value = found.class.label;
    } finally {
      select.disabled = false;
    }
    select.focus();
  });
}

function show(panel, found, name, photo) {
  const views = Object.values(found.heat_maps).map(({ title, method, map }) => view(found, { title, method, map, photo, name }));
  panel.querySelector(".views").replaceChildren(...views);
  const shares = Object.entries(HEADS).filter(([head]) => head in found.class.probabilities);
  const rows = shares.map(([head, label]) => ({ label, head, share: found.class.probabilities[head] }));
  panel.querySelector(".shares").replaceChildren(bars(rows));
  panel.querySelector(".timing").textContent = timing(found.timings_ms, found.all);
  if (found.blocks.length) slider(panel.querySelector(".blocks"), found);
}

/** An image with a map over the part that the network was shown. */
function view(found, { title, method, map, photo, name }) {
  const [width, height] = found.size;
  const { left, top, right, bottom } = found.seen;
  const seen = element("div", { class: "seen" }, element("img", {
    class: "heat", src: map, alt: `Evidence for ${found.class.label}: ${title}`,
  }));
  seen.style.left = `${(100 * left) / width}%`;
  seen.style.top = `${(100 * top) / height}%`;
  seen.style.width = `${(100 * (right - left)) / width}%`;
  seen.style.height = `${(100 * (bottom - top)) / height}%`;
  const frame = element("div", { class: "frame" });
  frame.style.aspectRatio = `${width} / ${height}`;
  if (photo !== null) frame.append(element("img", { class: "photo", src: photo, alt: name }));
  frame.append(seen);
  return element("figure", {}, frame, element("figcaption", {}, element("b", {}, title), " ", element("span", { class: "muted" }, method)));
}

function slider(part, found) {
  const range = part.querySelector("input");
  const output = part.querySelector("output");
  const images = [...part.querySelectorAll("img")];
  const { left, top, right, bottom } = found.seen;
  for (const image of images) image.style.aspectRatio = `${right - left} / ${bottom - top}`;
  const last = found.blocks.length;
  const before = part.hidden ? last : Number(range.value);
  range.max = last;
  range.value = before;
  range.oninput = () => {
    const block = found.blocks[range.value - 1];
    output.value = `${range.value} of ${last}`;
    range.setAttribute("aria-valuetext", `block ${range.value} of ${last}`);
    for (const [place, [name, title]] of LAYERS.entries()) {
      images[place].src = block[name];
      images[place].alt = `${title} of block ${range.value}`;
    }
  };
  range.oninput();
  part.hidden = false;
}
