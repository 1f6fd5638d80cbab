// Load Concept Images: its images with their captions on the node, and files to upload from the desktop.

import { app } from "../../scripts/app.js";
import { ConceptPanel, filesOf, hasFiles } from "./lib/concept_panel.js";
import { choicesOf, folderChoices, listImages, NODE_ID, saveCaption, thumbnailUrl } from "./lib/concept_server.js";
import { upload } from "./lib/concept_upload.js";
import { aboutUpload, isOwnFolder, newFolder, NO_FOLDER, stem, trainedUnder } from "./lib/concept_words.js";
import { loadStyle } from "./lib/page.js";

const WIDGET = "concept_images";
const LEAST_HEIGHT = 240;
const SIZE = [400, 630];
const SET_TOKEN = 'Set "token" to a made-up word such as "my-fox".';
const HINT = "Drop images here, paste one, or press Add images.";

/** Call `then` after a method of this one object. */
function after(owner, name, then) {
  const before = owner[name];
  owner[name] = function (...given) {
    const result = before?.apply(this, given);
    then();
    return result;
  };
}

const nodes = new Set(); // those on the canvas
let choices = []; // of the drop-down, newer than those that the page was loaded with

/** One node of the kind, its panel, and what happens between them. */
class ConceptImages {
  constructor(node) {
    this.node = node;
    this.images = [];
    this.uploads = Promise.resolve();
    this.asked = 0;
    this.panel = new ConceptPanel((files) => this.take(files));
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => LEAST_HEIGHT };
    const widget = node.addDOMWidget(WIDGET, "continual_lora_concept_images", this.panel.element, options);
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
    this.#follow();
  }

  #follow() {
    after(this.widget("folder"), "callback", () => {
      this.panel.say("");
      this.refresh();
    });
    for (const name of ["token", "class_noun", "prompt"]) {
      after(this.widget(name), "callback", () => this.showPrompt());
    }
    after(this.node, "onAdded", () => {
      nodes.add(this);
      if (choices.length) this.offer();
      this.refresh();
    });
    after(this.node, "onConfigure", () => this.refresh());
    after(this.node, "onConnectionsChange", () => this.refresh());
    after(this.node, "onRemoved", () => nodes.delete(this));
    this.node.onDragOver = (event) => hasFiles(event.dataTransfer);
    this.node.onDragDrop = (event) => {
      if (!hasFiles(event.dataTransfer)) return false;
      event.preventDefault();
      event.stopPropagation();
      this.take(filesOf(event.dataTransfer));
      return true;
    };
  }

  widget(name) {
    return this.node.widgets.find((item) => item.name === name);
  }

  isLinked(name) {
    return this.node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
  }

  get folder() {
    return this.widget("folder").value;
  }

  /** Where images go that have no folder of their own yet; null where the token cannot name one. */
  newFolder() {
    return newFolder(this.widget("token").value, this.widget("folder").options.values);
  }

  /** Look again at what the folder holds. */
  async refresh() {
    this.asked += 1;
    const turn = this.asked;
    await null; // a workflow that is being loaded sets all values first
    if (turn !== this.asked) return;
    const { folder } = this;
    const reason = this.#reasonForNothing();
    if (reason) {
      this.images = [];
      this.panel.showNothing(reason);
      return;
    }
    try {
      const found = await listImages(folder);
      if (turn !== this.asked) return; // another folder was chosen meanwhile
      this.images = found.images;
      const picture = (image) => thumbnailUrl(folder, image);
      const save = (name, before, caption) => this.save(folder, name, before, caption);
      this.panel.show(folder, found, { picture, save });
      this.showPrompt();
    } catch (error) {
      if (turn === this.asked) this.panel.showNothing(error.message);
    }
  }

  #reasonForNothing() {
    if (this.isLinked("folder")) return "The folder comes from a link.";
    if (this.folder !== NO_FOLDER) return "";
    if (this.isLinked("images")) return "The images come from the images input.";
    const where = this.newFolder();
    return `${HINT} ${where ? `They go to input/${where}.` : SET_TOKEN}`;
  }

  /** Show what images are trained under where they have no caption. */
  showPrompt() {
    if (!this.isLinked("folder") && this.folder === NO_FOLDER) this.refresh(); // its hint names the token
    const [token, classNoun, template] = ["token", "class_noun", "prompt"].map((name) => this.widget(name).value);
    const isKnown = !["token", "class_noun", "prompt"].some((name) => this.isLinked(name));
    this.panel.showPrompt((caption) => (isKnown ? trainedUnder(caption, { token, classNoun, template }) : caption));
  }

  /** Save a caption; an image of the same name with another ending shares it. */
  async save(folder, name, before, caption) {
    const saved = await saveCaption(folder, name, before, caption);
    if (this.images.some((other) => other.name !== name && stem(other.name) === stem(name))) this.refresh();
    return saved;
  }

  /** Upload files, after those that are on their way. */
  take(files) {
    if (!files.length) return;
    this.uploads = this.uploads.then(() => this.#upload(files)).catch((error) => this.panel.say("", [error.message]));
  }

  async #upload(files) {
    if (this.isLinked("folder") || (this.folder === NO_FOLDER && this.isLinked("images"))) {
      throw new Error(`${this.#reasonForNothing()} Disconnect it to add images here.`);
    }
    offer(await folderChoices());
    const isOwn = isOwnFolder(this.folder);
    const folder = isOwn ? this.folder : this.newFolder();
    if (!folder) throw new Error(`The new folder is named after the token. ${SET_TOKEN}`);
    const known = isOwn ? (await listImages(folder)).images : [];
    const done = await upload(files, folder, known, (sentence) => this.panel.say(sentence));
    if (done.added) offer(await folderChoices());
    if (done.added || isOwn) this.choose(folder);
    this.panel.say(aboutUpload(folder, done), done.problems);
  }

  /** Choose a folder as if by hand. */
  choose(folder) {
    const widget = this.widget("folder");
    if (widget.value !== folder) {
      widget.value = folder;
      widget.callback(folder, app.canvas, this.node);
      this.node.graph?.change();
    } else {
      this.refresh();
    }
  }

  /** Let the drop-down list what is there now; in place, because Vue nodes keep the list that they once got. */
  offer() {
    const { values } = this.widget("folder").options;
    values.splice(0, values.length, ...choices);
  }
}

/** Let every node offer the folders that there are. */
function offer(folders) {
  choices = folders;
  for (const one of nodes) one.offer();
}

const isText = (target) => target instanceof Element && target.closest("input, textarea, [contenteditable]");

/** The node that a paste is meant for: the one whose panel has the focus, else the only one selected. */
function pastedOnto(target) {
  const all = [...nodes];
  const focused = all.find((one) => one.panel.element.contains(target));
  if (focused || isText(target)) return focused;
  const selected = Object.values(app.canvas.selected_nodes ?? {});
  return selected.length === 1 ? all.find((one) => one.node === selected[0]) : undefined;
}

function paste(event) {
  if (isText(event.target) && event.clipboardData.types.includes("text/plain")) return; // with a picture of it beside
  const files = filesOf(event.clipboardData);
  const onto = files.length ? pastedOnto(event.target) : undefined;
  if (!onto) return;
  event.preventDefault();
  event.stopImmediatePropagation(); // ComfyUI would add a Load Image node for it
  onto.take(files);
}

app.registerExtension({
  name: "continual_lora.concept_images",

  setup() {
    loadStyle("concept_images.css");
    document.addEventListener("paste", paste, true);
  },

  nodeCreated(node) {
    if (node.comfyClass === NODE_ID) new ConceptImages(node);
  },

  /** R was pressed. */
  refreshComboInNodes(definitions) {
    offer(choicesOf(definitions[NODE_ID]));
    for (const one of nodes) one.refresh();
  },
});
