// Files from the desktop become images of a folder, and their .txt files become captions.

import { saveCaption, uploadImage } from "./concept_server.js";
import { isCaption, isImage, oneLine, stem } from "./concept_words.js";

const TAKEN = "images (png, jpg, jpeg, webp, bmp) and captions (txt) go here";

/**
 * Upload what can be, one after the other.
 *
 * `known` are the images that the folder has; `tell(sentence)` is called as it goes on. Returns how many images were
 * added, how many the folder had already, and a sentence for each file that was left out.
 */
export async function upload(files, folder, known, tell) {
  const images = files.filter((file) => isImage(file.name));
  const captions = files.filter((file) => isCaption(file.name));
  const others = files.filter((file) => !images.includes(file) && !captions.includes(file));
  const before = new Set(known.map((image) => image.name));
  const done = { added: 0, known: 0, problems: others.map((file) => `"${file.name}" was left out: ${TAKEN}.`) };
  const placed = new Map(); // stem of a file -> the name that its image has in the folder
  for (const image of known) placed.set(stem(image.name), image.name);
  for (const [index, file] of images.entries()) {
    tell(`Uploading ${index + 1} of ${images.length}.`);
    try {
      const name = await uploadImage(file, folder);
      placed.set(stem(file.name), name);
      done[before.has(name) ? "known" : "added"] += 1;
      before.add(name);
    } catch (error) {
      done.problems.push(`"${file.name}" was not uploaded: ${error.message}`);
    }
  }
  for (const file of captions) await placeCaption(file, folder, placed.get(stem(file.name)), known, done.problems);
  return done;
}

/** Save a .txt file as the caption of an image that has none. */
async function placeCaption(file, folder, name, known, problems) {
  if (!name) {
    problems.push(`"${file.name}" was left out: there is no image "${stem(file.name)}" beside it.`);
    return;
  }
  const now = known.find((image) => image.name === name)?.caption ?? "";
  const caption = oneLine(await file.text());
  if (caption === now) return;
  if (now) {
    problems.push(`"${file.name}" was left out: "${name}" has another caption already.`);
    return;
  }
  try {
    await saveCaption(folder, name, "", caption);
  } catch (error) {
    problems.push(`"${file.name}" was left out: ${error.message}`);
  }
}
