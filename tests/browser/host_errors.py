"""What the page of ComfyUI itself writes to the console as errors: everything else there is taken for ours."""

import re
from urllib.parse import urlsplit

# Files that a new user does not have, or that ComfyUI's page asks for on the chance.
OPTIONAL_FILES = {
    "/favicon.ico",
    "/user.css",
    "/api/userdata/user.css",
    "/api/userdata/comfy.templates.json",
    "/templates/fuse_options.json",
    "/templates/index_logo.json",
}
# A help page without a translation is shown as it is.
OF_A_PACK = re.compile(r"/extensions/[^/]+/docs/\w+/[\w-]+\.md$")
OPTIONAL_FOLDERS = ("dir=workflows", "dir=subgraphs")
ITS_OWN_WORDS = (
    # `--disable-api-nodes` forbids the page everything that is not the server.
    "Connecting to 'https://",
    "Fetch API cannot load https://",
    # Front-end 1.32.9 changes a setting before it has defined it.
    "TypeError: Cannot read properties of undefined (reading 'id')\n    at onChange",
    # 1.45.21: one of its own extensions, and one of its optional files above.
    "ComfyApp graph accessed before initialization",
    "Error loading fuse options: AxiosError: Request failed with status code 404",
)


def is_of_the_host(text: str, url: str) -> bool:
    """Whether an error in the console, about or from `url`, is one of ComfyUI's own."""
    if "status of 404" in text:
        asked = urlsplit(url)
        missing_folder = asked.path == "/api/userdata" and asked.query.startswith(OPTIONAL_FOLDERS)
        return asked.path in OPTIONAL_FILES or missing_folder or OF_A_PACK.match(asked.path) is not None
    return text.startswith(ITS_OWN_WORDS)
