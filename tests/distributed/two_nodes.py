"""Commands and script of the page "Several machines", on two nodes of this machine.

`test_several_machines.py` runs this program in namespaces of its own. There, only its
own loopback can be reached, the default port of Ray is free, and all processes end with
the program. The argument is a folder that stands for the home folder.
"""

import fcntl
import os
import re
import shlex
import socket
import struct
import subprocess
import sys
from pathlib import Path

from jaxwgc.distributed.ray import _session
from tests.distributed import ray_processes

PAGE = Path(__file__).parents[2] / "docs" / "cluster" / "several-machines.md"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# Addresses of loopback. Ray replaces 127.0.0.1 by another address of the machine.
ADDRESSES = {"head": "127.0.0.2", "other": "127.0.0.3"}
# The nodes share one machine. With `--block`, they are children of this process.
OPTIONS = ["--block", "--num-cpus=2", "--object-store-memory=100000000"]
# A busy machine takes long to answer the question whether Ray is there.
PATIENCE = """\
from jaxwgc.distributed.ray import _session
_session._SECONDS_TO_CONNECT = 300
"""


def block_of(page, language):
    """Returns the first block of a language."""
    return re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)[1]


def commands_of(page, machine):
    """Returns the commands of a machine, as lists of words."""
    lines = re.findall(rf"^{machine}\$ +(.*)$", block_of(page, "console"), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def start_loopback():
    """Starts the network interface `lo`, which a new namespace has without."""
    flags_of_interface = struct.pack("16sh", b"lo", 1)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, flags_of_interface)


def make_token(command):
    """Runs the command of the page that writes a token, and shows nothing."""
    assert command[-2:] == [">", "/dev/null"]
    subprocess.run([*RAY, *command[1:-2]], check=True, capture_output=True)


def start_node(machine, command, folder):
    """Starts a node by the command of the page, and returns when it is running."""
    words = [word.replace("head:", f"{ADDRESSES['head']}:") for word in command[1:]]
    output = Path(folder, f"{machine}.txt")
    with output.open("w") as file:
        node = subprocess.Popen(
            [*RAY, *words, *OPTIONS, f"--node-ip-address={ADDRESSES[machine]}"],
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    def is_running():
        assert node.poll() is None, output.read_text()
        return "Ray runtime started" in output.read_text()

    ray_processes.repeat_until(is_running)
    return node


def check_that_token_is_named():
    """A program that does not send the token is told how to."""
    address = f"{ADDRESSES['head']}:6379"
    mode = os.environ.pop("RAY_AUTH_MODE")
    try:
        _session.check_address(address)
    except ConnectionError as error:
        assert "InvalidAuthToken" in str(error), error
        assert "copy ~/.ray/auth_token" in str(error), error
        assert "set RAY_AUTH_MODE=token" in str(error), error
    else:
        raise AssertionError("Ray must require its token")
    os.environ["RAY_AUTH_MODE"] = mode
    _session.check_address(address)


def main(folder):
    """Starts two nodes, trains, and ends one of them when the script asks for it."""
    page = PAGE.read_text(encoding="utf-8")
    start_loopback()
    _session._SECONDS_TO_CONNECT = 300
    os.environ |= {"HOME": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = {}
    for machine in ADDRESSES:
        commands = commands_of(page, machine)
        assert commands[0] == ["export", "RAY_AUTH_MODE=token"]
        os.environ["RAY_AUTH_MODE"] = "token"
        for command in commands:
            if command[:2] == ["ray", "get-auth-token"]:
                make_token(command)
            if command[:2] == ["ray", "start"]:
                nodes[machine] = start_node(machine, command, folder)
    check_that_token_is_named()

    script = Path(folder, "train.py")
    script.write_text(PATIENCE + block_of(page, "python"), encoding="utf-8")
    training = subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    where = training.stdout.readline()
    assert len(set(re.findall(r"node (\w+)", where))) == 2, where
    processes = ray_processes.descendants(nodes["other"].pid)
    nodes["other"].kill()
    ray_processes.end_all(processes)
    printed, _ = training.communicate("\n")
    assert printed.endswith("[-0.  1.  2.  3.  4.]\n"), printed
    assert training.returncode == 0


if __name__ == "__main__":
    main(sys.argv[1])
