#!/usr/bin/env python3
"""tests/windows/console.py BUILD [CHAT_MODEL]: the programs for Windows on a console, which wine has on a pseudoterminal:
text that is typed, and Ctrl-C. BUILD: the folder with the programs."""
import filecmp
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
import tty

LIMIT = 180  # seconds, for busy machines


class Console:
    """A program on a console of its own."""

    def __init__(self, *command):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            tty.setcbreak(0)  # Ctrl-C is a signal; Enter stays a carriage return
            mode = termios.tcgetattr(0)
            mode[0] &= ~termios.ICRNL
            termios.tcsetattr(0, termios.TCSANOW, mode)
            os.execvp("wine", ["wine", *command])
        self.out, self.end = b"", time.monotonic() + LIMIT

    def read(self):
        """Reads what the program wrote; False at its end."""
        if time.monotonic() > self.end:
            os.kill(self.pid, 9)
            sys.exit(f"tests/windows/console: no end within {LIMIT} s: {self.text()[-500:]!r}")
        if not select.select([self.file], [], [], 0.1)[0]:
            return True
        try:
            more = os.read(self.file, 65536)
        except OSError:
            more = b""
        self.out += more
        return more != b""

    def text(self):
        """What the program wrote, without escape sequences; spaces are cursor movements."""
        spaces = re.sub(rb"\x1b\[\d*C", b" ", self.out)
        return re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", spaces).decode(errors="replace")

    def type(self, keys):
        os.write(self.file, keys.encode())

    def wait(self, pattern):
        """Waits for output that matches."""
        while not re.search(pattern, self.text()):
            check(self.read(), f"expected {pattern!r}, found {self.text()[-500:]!r}")

    def status(self):
        """The exit status, when the program has ended."""
        while self.read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def check(condition, message):
    if not condition:
        sys.exit(f"tests/windows/console: {message}")


def interrupts_the_converter(build):
    """An existing file stays as it was, and nothing else is left."""
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/старый файл.bin"
        with open(path, "wb") as file:
            file.write(b"abc")
        console = Console(build + "/pocketllama-convert.exe", "--random", "smollm2-135m", "-o", path)
        console.wait(r"\d%")
        check(len(os.listdir(folder)) == 2, f"expected a temporary file, found {os.listdir(folder)}")
        console.type("\x03")
        status = console.status()
        check(status == 130, f"convert: expected exit status 130, found {status}")
        check(os.listdir(folder) == ["старый файл.bin"], f"found {os.listdir(folder)}")
        with open(path, "rb") as file:
            check(file.read() == b"abc", "convert: the existing file was changed")


def contents(path):
    """The text of a file; "" if there is none."""
    if not os.path.exists(path):
        return ""
    with open(path, encoding="ascii") as file:
        return file.read()


def interrupts_a_training(build):
    """The training continues to the same model as one on this machine, which was not interrupted."""
    text = "".join(f"Once upon a time there was a {number} that said {number * 7}.\n<|endoftext|>\n" for number in range(200))
    options = "--dim 32 --layers 1 --vocab 300 --ctx 32 --batch 4 --every 200".split()
    with tempfile.TemporaryDirectory() as folder:
        source, output, expected = folder + "/text.txt", folder + "/windows.bin", folder + "/linux.bin"
        with open(source, "w", encoding="ascii") as file:
            file.write(text)
        command = [build + "/train.exe", source, "-o", output]
        console = Console(*command, *options, "--steps", "4000")
        while "\n200," not in contents(folder + "/windows.loss.csv"):
            check(console.read(), f"train: ended: {console.text()[-500:]!r}")
        console.type("\x03")
        status = console.status()
        check(status == 130, f"train: expected exit status 130, found {status}: {console.text()[-500:]!r}")
        check("interrupted" in console.text(), f"train: found {console.text()[-500:]!r}")
        found = sorted(os.listdir(folder))
        left = ["text.txt", "windows.bin.checkpoint", "windows.loss.csv", "windows.loss.svg"]
        check(found == left, f"train: expected the files {left}, found {found}")
        subprocess.run(["wine", *command, "--resume"], check=True, capture_output=True)
        native = [os.path.dirname(os.path.abspath(__file__)) + "/../../models/train", source, "-o", expected]
        subprocess.run([*native, *options, "--steps", "4000"], check=True, capture_output=True)
        check(filecmp.cmp(output, expected, shallow=False), "train --resume: another model")
        rows, found = (contents(f"{folder}/{name}.loss.csv").splitlines() for name in ("linux", "windows"))
        check(len(found) == len(rows), f"train --resume: expected {len(rows)} rows of losses, found {len(found)}")


def interrupts_a_text(build, model):
    options = ["-i", "Once upon a time", "-s", "1", "-n", "4000", "--ctx", "4096"]
    for _ in range(3):  # wine itself may end by a signal; a fault of the program would be an exit status
        console = Console(build + "/pocketllama.exe", model, *options)
        console.wait(r"Once upon a time(.|\n){20}")
        console.type("\x03")
        status = console.status()
        if status != -signal.SIGSEGV:
            break
    check(status == 130, f"expected exit status 130, found {status}: {console.text()[-500:]!r}")


def chats(build, model):
    """Typed UTF-8; Ctrl-C stops a reply, then ends the chat."""
    console = Console(build + "/pocketllama.exe", model, "-m", "chat", "-t", "0", "-n", "400")
    console.wait(">")
    console.type("What is the capital of France?\r")
    console.wait(r"Paris\.\s+>")
    console.type("Привет! Tell me a very long story about dogs.\r")
    console.wait(r"about dogs\.\s+\w(.|\n){20}")
    console.type("\x03")
    console.wait(r"stopped; press Ctrl-C again(.|\n)*\n\s*>")
    console.type("/quit\r")
    status = console.status()
    check(status == 0, f"chat: expected exit status 0, found {status}: {console.text()[-500:]!r}")


def main():
    build, model = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    interrupts_the_converter(build)
    interrupts_a_training(build)
    if model:
        interrupts_a_text(build, model)
        chats(build, model)
    print("tests/windows/console: passed")


if __name__ == "__main__":
    main()
