// What the panel of Load Concept Images asks the server for.

import { api } from "../../../scripts/api.js";

export const NODE_ID = "ContinualLoRA_LoadConceptImages";
const ROUTE = "/continual_lora/concepts";

/** The answer's JSON; an Error in the server's words where it refuses. */
async function told(response) {
  if (response.ok) return response.json();
  const answer = await response.json().catch(() => ({}));
  throw new Error(answer.error ?? `The server answered ${response.status} ${response.statusText}.`);
}

/** The images of a choice of the drop-down: { editable, total, images: [{ name, caption, width, ... }] }. */
export async function listImages(folder) {
  return told(await api.fetchApi(`${ROUTE}?${new URLSearchParams({ folder })}`));
}

/** Where the small picture of a listed image is; another address whenever the file is another. */
export function thumbnailUrl(folder, { name, version }) {
  return api.apiURL(`${ROUTE}/thumbnail?${new URLSearchParams({ folder, name, version })}`);
}

/** Write a caption; the server refuses if it is not `before` on the disk any more. Returns it in one line. */
export async function saveCaption(folder, name, before, caption) {
  const response = await api.fetchApi(`${ROUTE}/caption`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ folder, name, before, caption }),
  });
  return (await told(response)).caption;
}

/** Upload an image into a folder below ComfyUI's input; never over another. Returns the name that it got. */
export async function uploadImage(file, folder) {
  const body = new FormData();
  body.append("image", file);
  body.append("type", "input");
  body.append("subfolder", folder);
  return (await told(await api.fetchApi("/upload/image", { method: "POST", body }))).name;
}

/** The choices of the drop-down in the node's definition. */
export function choicesOf(definition) {
  const [kind, options] = definition.input.required.folder;
  return Array.isArray(kind) ? kind : options.options;
}

/** The choices of the drop-down as they are now. */
export async function folderChoices() {
  return choicesOf((await told(await api.fetchApi(`/object_info/${NODE_ID}`)))[NODE_ID]);
}
