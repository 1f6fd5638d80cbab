// What every panel of the pack needs of the page: its style sheets, its colors, and when they change.

import { element } from "./elements.js";

const styles = new Map(); // address -> when it is loaded

/** Load a style sheet once, and wait for it; `address` is relative to the pack's folder of scripts. */
export function loadStyle(address) {
  if (!styles.has(address)) {
    const link = element("link", { rel: "stylesheet", href: new URL(`../${address}`, import.meta.url).href });
    styles.set(address, new Promise((loaded) => link.addEventListener("load", loaded)));
    document.head.append(link);
  }
  return styles.get(address);
}

/** Call back when ComfyUI changes its colors; returns what ends it. */
export function onThemeChange(callback) {
  const observer = new MutationObserver(callback);
  for (const element of [document.documentElement, document.body]) {
    observer.observe(element, { attributes: true, attributeFilter: ["class", "style"] });
  }
  return () => observer.disconnect();
}

/** The value of a CSS variable where an element is. */
export function cssVariable(element, name) {
  return getComputedStyle(element).getPropertyValue(name).trim();
}
