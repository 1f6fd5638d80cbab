// Names and sentences of the panel of Load Concept Images.

export const NO_FOLDER = "(use the images input)";
export const BUNDLED = "bundled: ";
const IMAGE = /^[^.].*\.(png|jpe?g|webp|bmp)$/i;
const TOKEN = /^[A-Za-z0-9_-]{1,64}$/;
const DEVICE = /^(con|prn|aux|nul|com\d|lpt\d)$/i; // never a folder on Windows
const FEWEST = 3;
const MOST = 20;

export const isImage = (name) => IMAGE.test(name);
export const isCaption = (name) => /^[^.].*\.txt$/i.test(name);
export const isOwnFolder = (choice) => choice !== NO_FOLDER && !choice.startsWith(BUNDLED);
export const stem = (name) => name.replace(/\.[^.]*$/, "");
export const oneLine = (text) => text.split(/\s+/).filter(Boolean).join(" ");
export const bareToken = (text) => text.trim().replace(/^</, "").replace(/>$/, "");

/** A folder for new images, named after the token and in nobody's use; null where the token cannot name one. */
export function newFolder(token, choices) {
  const name = bareToken(token);
  if (!TOKEN.test(name) || DEVICE.test(name)) return null;
  const first = `concepts/${name}`;
  let folder = first;
  for (let number = 2; choices.includes(folder); number += 1) folder = `${first}-${number}`;
  return folder;
}

/** What an image is trained under: its caption, after the prompt if it lacks the token. */
export function trainedUnder(caption, { token, classNoun, template }) {
  const word = bareToken(token);
  // Functions, because a text could hold what stands for the match, such as "$&".
  const filled = (text) => text.replaceAll("{token}", () => word).replaceAll("{class_noun}", () => classNoun.trim());
  const own = filled(caption);
  return own.includes(`<${word}>`) ? own : [filled(template), own].filter(Boolean).join(", ");
}

export const images = (count) => (count === 1 ? "1 image" : `${count} images`);

/** "" or what is unusual about the number of images. */
export function aboutCount(count) {
  if (count >= FEWEST && count <= MOST) return "";
  const which = `${images(count)} ${count === 1 ? "is" : "are"} ${count < FEWEST ? "few" : "many"}`;
  return `${which}: ${FEWEST} to ${MOST} images of the concept are best.`;
}

/** What was added to a folder, and how many images it had already. */
export function aboutUpload(folder, { added, known }) {
  const parts = [];
  if (added) parts.push(`${images(added)} added to input/${folder}.`);
  if (known) parts.push(`${images(known)} there already.`);
  return parts.join(" ");
}
