"""What provokes the messages of ``play`` and ``serve``."""

import io
import logging
import socket

from lit_dola import JanusPipeline, UserError
from lit_dola.apps.caller_queue import CallerQueue
from lit_dola.apps.limits import Limits
from tests.troubleshooting.scene import CASES, case

LIMITS = Limits(max_images=8, max_prompt_length=2000, max_queue=2)


def raised(function, *args):
    """Return what a function raises, as the command line would say it."""
    try:
        function(*args)
    except UserError as error:
        return (1, f"error: {error}\n"), 1
    return (0, ""), 1


def _asked(check, name, value):
    return lambda scene: raised(getattr(LIMITS, check), name, value)


CASES["images: 9; expected an integer, 1 to 8"] = _asked("check_images", "images", 9)
CASES["characters; expected at most 2,000"] = _asked("check_prompt", "prompt", "a" * 2001)
CASES["prompt: 3; expected a string"] = _asked("check_prompt", "prompt", 3)


@case("queue full, 1 drawings")
def full_line(scene):
    line = CallerQueue(1)
    line.join()
    return raised(line.join)


@case("connection timed out")
def lost(scene):
    line = CallerQueue(2)
    place = line.join()
    place.seen = float("-inf")
    line.join()
    return raised(line.before, place)


@case("the page shares one model")
def two_devices(scene):
    return scene.main("play", "--trainer.accelerator=cpu", "--trainer.devices=2"), 1


@case("a token that no header can carry")
def odd_token(scene):
    scene.monkeypatch.setenv("LIT_DOLA_API_KEY", "two words")
    return scene.predict("--port=8765", subcommand="serve"), 1


@case("public_url: 'example.org'; expected an address")
def odd_public_url(scene):
    return scene.predict("--port=8765", "--public_url=example.org", subcommand="serve"), 1


@case("host: empty")
def no_host(scene):
    return scene.predict("--host=", subcommand="play"), 1


@case("an address of this machine")
def other_machine(scene):
    return scene.predict("--host=203.0.113.7", subcommand="play"), 1


@case("a server runs on one machine")
def two_machines(scene):
    return scene.predict("--trainer.num_nodes=2", subcommand="serve"), 1


@case("Address already in use")
def taken_port(scene):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        return scene.predict(f"--port={port}", subcommand="serve"), 1


@case("sets a token")
def everybody(scene):
    from lit_dola.apps.starting import warn_if_open

    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log = logging.getLogger("lit_dola.apps.starting")
    log.addHandler(handler)
    scene.monkeypatch.delenv("LIT_DOLA_API_KEY", raising=False)
    warn_if_open("127.0.0.1")
    warn_if_open("0.0.0.0")
    log.removeHandler(handler)
    return (0, said.getvalue()), 0


def _ended(**what):
    def provoke(scene):
        from lit_dola.apps.server import why_it_ended
        from lit_dola.apps.worker import Shared

        shared = Shared.of(1, 1)
        shared.pids[0] = what.get("pid", 0)
        return (1, f"error: {why_it_ended(shared)}\n"), 1

    return provoke


CASES["a process with the model has died"] = _ended(pid=1)
CASES["the model was not loaded"] = _ended()


def _history(scene, output_dir, *drawings):
    from lit_dola.apps.studio import Studio, Wish

    pipeline = JanusPipeline.from_pretrained(scene.checkpoint)
    studio = Studio(pipeline, {}, LIMITS, output_dir)
    history = [[*studio.draw(Wish(prompt, 1, 0, {}), 0)][-1] for prompt in drawings]
    found = raised(studio.save, history)
    studio.close()
    return found


@case("history: empty")
def nothing_drawn(scene):
    return _history(scene, scene.folder / "saved")


@case(": Not a directory")
def saved_nowhere(scene):
    (scene.folder / "file").write_text("")
    return _history(scene, scene.folder / "file", "a cat")
