// The next page of a long list, asked for when its end comes into view.

/** Watches the end of a list in a box that scrolls; nothing runs while nobody scrolls. */
export class MoreWhenSeen {
  /** `end` is the element behind the last item; `more` gets the next page and resolves to whether there is another. */
  constructor(box, end, more) {
    this.end = end;
    this.more = more;
    this.observer = new IntersectionObserver((entries) => this.#seen(entries), { root: box });
  }

  start() {
    this.observer.observe(this.end);
  }

  stop() {
    this.observer.disconnect();
  }

  async #seen(entries) {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    this.stop();
    // Observing anew asks again at once whether the end is still in view.
    if (await this.more()) this.start();
  }
}
