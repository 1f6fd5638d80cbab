"""What the page of ComfyUI itself writes to the console as errors: everything else there is taken for ours."""

from urllib.parse import urlsplit

# Files that a new user does not have, and that ComfyUI's page asks for all the same.
OPTIONAL_FILES = {
    "/favicon.ico",
    "/user.css",
    "/api/userdata/user.css",
    "/api/userdata/comfy.templates.json",
    "/templates/fuse_options.json",
    "/templates/index_logo.json",
}
OPTIONAL_FOLDERS = ("dir=workflows", "dir=subgraphs")
ITS_OWN_WORDS = (
    # Asked for facts about node packs, which `--disable-api-nodes` forbids.
    "Connecting to 'https://api.comfy.org/",
    # Front-end 1.32.9 changes a setting before it has defined it.
    "TypeError: Cannot read properties of undefined (reading 'id')\n    at onChange",
    # 1.45.21, of one of its own extensions, and of its optional file above.
    "ComfyApp graph accessed before initialization",
    "Error loading fuse options: AxiosError: Request failed with status code 404",
)


def is_of_the_host(text: str, url: str) -> bool:
    """Whether an error in the console, about or from `url`, is one of ComfyUI's own."""
    if "status of 404" in text:
        asked = urlsplit(url)
        missing_folder = asked.path == "/api/userdata" and asked.query.startswith(OPTIONAL_FOLDERS)
        return asked.path in OPTIONAL_FILES or missing_folder
    return text.startswith(ITS_OWN_WORDS)
