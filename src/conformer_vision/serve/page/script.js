// The page: images come in by drop, paste, choice or camera, and each becomes a card with its answer.

import { ask, onKeyNeeded, setKey } from "./api.js";
import { Card } from "./card.js";
import { megabytes } from "./parts.js";

const AT_ONCE = 4; // the server makes batches of what arrives together

const by = (id) => document.getElementById(id);
let served = null; // what GET /model says
let cards = [];
let waiting = [];
let running = 0;
let stop = new AbortController();

const say = (text) => { by("status").textContent = text; };

// The key

let keyGiven = null;
onKeyNeeded((line) => {
  keyGiven ??= new Promise((resolve) => {
    by("key-form").hidden = false;
    by("key-error").textContent = line;
    by("key").focus();
    by("key-form").onsubmit = (event) => {
      event.preventDefault();
      try {
        setKey(by("key").value.trim());
      } catch (error) {
        by("key-error").textContent = error.message;
        return;
      }
      by("key-form").hidden = true;
      by("key").value = "";
      keyGiven = null;
      by("choose").focus();
      resolve();
    };
  });
  return keyGiven;
});

// The model

async function meet() {
  by("trouble").hidden = true;
  try {
    served = await ask("model", {}, (seconds) => {
      by("model").textContent = seconds ? `The server is not ready. Trying again in ${seconds} s …` : "Asking the server for its model …";
    });
  } catch (error) {
    by("model").textContent = "";
    by("trouble").firstElementChild.textContent = error.message;
    by("trouble").hidden = false;
    return;
  }
  const { model, classes, limits } = served;
  by("model").textContent = `${model.name}: ${model.architecture}, ${classes.length} classes, version ${model.version} (${model.format})`;
  by("limits").textContent = `Up to ${megabytes(limits.body_bytes)} each. The file is sent as it is.`;
  by("no-maps").hidden = served.explainable;
  by("classes").hidden = false;
  by("classes").firstElementChild.textContent = `The ${classes.length} classes`;
  by("classes").lastElementChild.textContent = classes.join(", ");
  next();
}
by("trouble").lastElementChild.addEventListener("click", meet);

// Images and answers

function add(files) {
  const images = [...files];
  by("note").textContent = images.length ? "" : "That was no file. Save the image first, or copy it and paste it here.";
  if (!images.length) return;
  by("answers").hidden = false;
  const page = { served: () => served, say, signal: stop.signal };
  for (const file of images) {
    const card = new Card(file, page);
    card.onRetry(() => { waiting.push(card); next(); });
    cards.push(card);
    waiting.push(card);
    by("gallery").append(card.item);
  }
  say(images.length === 1 ? `${images[0].name} is sent.` : `${images.length} images are sent.`);
  by("answers").scrollIntoView({ block: "nearest" });
  next();
}

function next() {
  if (served === null) return;
  while (running < AT_ONCE && waiting.length) {
    const card = waiting.shift();
    running += 1;
    card.predict().finally(() => {
      running -= 1;
      summarise();
      next();
    });
  }
}

function summarise() {
  const open = cards.filter((card) => card.done === null).length;
  if (open || !cards.length) return;
  const failed = cards.filter((card) => card.done === false).length;
  const count = cards.length === 1 ? "1 image" : `${cards.length} images`;
  say(failed ? `${count}: ${cards.length - failed} answered, ${failed} without an answer.` : `${count} answered.`);
}

by("clear").addEventListener("click", () => {
  stop.abort();
  stop = new AbortController();
  for (const card of cards) card.remove();
  cards = [];
  waiting = [];
  by("answers").hidden = true;
  by("choose").focus();
});

for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
  by(button).addEventListener("click", () => by(input).click());
  by(input).addEventListener("change", () => {
    add(by(input).files);
    by(input).value = ""; // the same file may be chosen again
  });
}

by("photograph").hidden = navigator.maxTouchPoints === 0; // elsewhere it would be the same as choosing

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    add(event.clipboardData.files);
  }
});

let inside = 0; // dragenter and dragleave come for every element
const over = (by_) => {
  inside = Math.max(inside + by_, 0);
  by("drop").classList.toggle("over", inside > 0);
};
document.addEventListener("dragenter", () => over(1));
document.addEventListener("dragleave", () => over(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over(-inside);
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
  const folders = items.filter((item) => item.webkitGetAsEntry?.()?.isDirectory);
  add(items.filter((item) => !folders.includes(item)).map((item) => item.getAsFile()));
  if (folders.length) by("note").textContent = "Folders are left out: open the folder, and drop the images in it.";
});

meet();
