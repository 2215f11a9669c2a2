// One image and its answer.

import { ask, body, Refusal } from "./api.js";
import { showMaps } from "./maps.js";
import { bars, element, megabytes, percent, timing } from "./parts.js";

const BRANCHES = [["conv", "Convolution branch"], ["trans", "Transformer branch"]];
const SHOWN_OF_SEVERAL_LABELS = 5;
const HOPELESS = [400, 413, 415, 422]; // the file is what it is

export class Card {
  /**
   * @param {File} file
   * @param {{served: () => object, say: (text: string) => void, signal: AbortSignal}} page
   */
  constructor(file, page) {
    this.file = file;
    this.page = page;
    this.done = null; // true: answered, false: no answer
    this.item = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.url = URL.createObjectURL(file);
    this.photo = this.url;
    const image = this.find(".picture img");
    image.src = this.url;
    image.alt = `The image ${file.name}`;
    image.addEventListener("error", () => {
      this.photo = null; // the server may read what the browser does not
      image.hidden = true;
      this.find(".missing").hidden = false;
    });
    this.find(".name").textContent = file.name || "image";
    this.find(".where").addEventListener("click", () => this.toggleMaps());
  }

  find(selector) {
    return this.item.querySelector(selector);
  }

  /** Call something when the user wants to try again. */
  onRetry(retry) {
    this.find(".failure button").addEventListener("click", () => {
      this.find(".failure").hidden = true;
      this.state("Waiting for its turn …");
      this.done = null;
      retry();
    });
  }

  state(text) {
    this.find(".state").hidden = text === null;
    if (text !== null) this.find(".state .text").textContent = text;
    this.find(".card").setAttribute("aria-busy", String(text !== null));
  }

  async predict() {
    const served = this.page.served();
    const waiting = (seconds) => this.state(seconds ? `The server is busy. Trying again in ${seconds} s …` : "Sending …");
    this.state("Sending …");
    try {
      if (this.file.size > served.limits.body_bytes) {
        const most = megabytes(served.limits.body_bytes);
        throw new Refusal(413, `It has ${megabytes(this.file.size)}, and the server takes at most ${most}.`);
      }
      const query = served.multilabel ? `?top_k=${SHOWN_OF_SEVERAL_LABELS}` : "";
      const began = performance.now();
      const found = await ask(`predict${query}`, { method: "POST", body: body(this.file), signal: this.page.signal }, waiting);
      const [prediction] = found.predictions;
      this.answer(prediction, timing(found.timings_ms, performance.now() - began));
      this.done = true;
    } catch (error) {
      if (error.name === "AbortError") return;
      this.done = false;
      const named = `${this.file.name}: `;
      this.find(".failure span").textContent = error.message.startsWith(named) ? error.message.slice(named.length) : error.message;
      this.find(".failure button").hidden = HOPELESS.includes(error.status);
      this.find(".failure").hidden = false;
    }
    this.state(null);
  }

  answer(prediction, took) {
    const { labels, probabilities, present } = prediction;
    const headline = this.find(".headline");
    if (present !== null) {
      headline.replaceChildren(...(present.length ? present.flatMap((name, place) => [place ? ", " : "", element("bdi", {}, name)]) : ["No class"]));
    } else {
      headline.replaceChildren(element("bdi", {}, labels[0]), " ", element("span", {}, percent(probabilities[0])));
    }
    this.find(".unsure").hidden = prediction.unsure === null;
    this.find(".unsure span").textContent = prediction.unsure ?? "";
    const set = this.find(".set");
    set.hidden = prediction.conformal_set === null;
    set.textContent = `Set that holds the class: ${prediction.conformal_set?.join(", ") || "none"}`;
    const rows = labels.map((label, place) => ({ label, share: probabilities[place], present: present?.includes(label) }));
    const branches = BRANCHES.filter(([head]) => prediction[head] !== null);
    const parts = [element("h4", {}, branches.length ? "Both branches together" : "The model"), bars(rows)];
    for (const [head, title] of branches) {
      const [label, share] = prediction[head];
      parts.push(element("h4", {}, `${title}, first choice`), bars([{ label, share, head }]));
    }
    this.find(".heads").replaceChildren(...parts);
    this.find(".result > .timing").textContent = took;
    this.find(".where").hidden = !this.page.served().explainable;
    this.find(".result").hidden = false;
  }

  async toggleMaps() {
    const button = this.find(".where");
    const panel = this.find(".maps");
    const open = button.getAttribute("aria-expanded") === "true";
    this.item.classList.toggle("wide", !open);
    button.setAttribute("aria-expanded", String(!open));
    button.textContent = open ? "Where does it look?" : "Hide where it looks";
    panel.hidden = open;
    if (open || panel.childElementCount) return;
    this.state("Looking …");
    const say = (text) => this.page.say(`${this.file.name}: ${text}`);
    const shownBusy = (text) => { this.state(text); say(text); };
    const context = { photo: this.photo, signal: this.page.signal, say: shownBusy };
    try {
      await showMaps(panel, this.file, context);
      context.say = say;
      say("Where the model looks is shown.");
    } catch (error) {
      if (error.name === "AbortError") return;
      panel.replaceChildren();
      panel.hidden = true;
      this.item.classList.remove("wide");
      button.setAttribute("aria-expanded", "false");
      button.textContent = "Where does it look?";
      say(error.message);
      this.find(".result > .timing").textContent = error.message;
    }
    this.state(null);
  }

  remove() {
    URL.revokeObjectURL(this.url);
    this.item.remove();
  }
}
