// What the concept-sequence panel asks the server for.

const ROUTE = "/continual_lora";

/** The requests of a page; `api` is ComfyUI's. Each throws an Error in the server's words where it refuses. */
export function sequenceServer(api) {
  async function get(route, query, signal) {
    const response = await api.fetchApi(`${ROUTE}/${route}?${new URLSearchParams(query)}`, { signal });
    if (response.ok) return response.json();
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error ?? `The server answered ${response.status} ${response.statusText}.`);
  }
  return {
    /** { name, num_tasks, tasks }: tasks from number `first` on, as many as the server gives at once. */
    sequence: (choice, first, signal) => get("sequence", { choice, first }, signal),
    /** { evaluation, choice, encoder, num_tasks, rows }; `evaluation` is null where there is none. */
    evaluation: (choice, evaluation, first, signal) => get("evaluation", { choice, evaluation, first }, signal),
    /** Where a picture of a task or a cell is, at most `side` pixels large. */
    picture: (choice, name, side) => api.apiURL(`${ROUTE}/picture?${new URLSearchParams({ choice, name, side })}`),
  };
}
