"""What to say when a device has no room for a training."""

from ..errors import ContinualLoraError
from ..settings import TrainSettings


def no_room(settings: TrainSettings) -> ContinualLoraError:
    """The error, with what makes a training smaller and is not chosen yet."""
    free = {"gradient_checkpointing": settings.gradient_checkpointing, "low_memory": settings.low_memory}
    switches = [f"switch {name} on" for name, chosen in free.items() if not chosen]
    same = f"{' and '.join(switches)}: the training then goes on where it stopped; or " if switches else ""
    several = settings.batch_size > 1
    batch = "set batch_size to 1 and gradient_accumulation to what batch_size was, or " if several else ""
    return ContinualLoraError(
        "The device should have room for a pass of the U-Net and for what training keeps of it.",
        f"It ran out of memory with {settings.batch_size} images a pass"
        + (", and with half as many." if several else "."),
        f"Close what else uses the device; {same}{batch}lower resolution, which begins this concept anew.",
    )
