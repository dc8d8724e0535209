"""Mixed load while the gateway is killed and restarted at random times.

The outcome of each request for its client, its line in the access log, and the metrics must agree.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

from main import HERE, certificate
from peers import Peer, free_port

SECONDS = float(os.environ.get("FIDELITY_OUTAGE", "20"))


class Gateway:
    """The backend, which is killed at random times."""

    def __init__(self):
        self.port, self.kills, self.ended = free_port(), 0, threading.Event()
        self.start()

    def start(self):
        self.process = subprocess.Popen(["node", HERE / "backend.mjs", str(self.port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n", "the backend did not start"

    def kill_repeatedly(self):
        """Kills and restarts the backend until `ended` is set."""
        while not self.ended.wait(random.uniform(0.2, 2)):
            self.process.kill()
            self.process.wait()
            self.kills += 1
            time.sleep(random.uniform(0, 1))
            self.start()

    def stop(self):
        self.ended.set()
        self.process.kill()
        self.process.wait()


class Sidecar(Peer):
    def command(self):
        self.admin = free_port()
        command = super().command()
        command[command.index("--admin") + 1] = f"127.0.0.1:{self.admin}"
        command[command.index("--log-level") + 1] = "info"
        return [*command, "--access-log", "--log-format", "json"]

    def ends_in_metrics(self) -> Counter:
        """The number of requests by their end, from the metrics."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5).read().decode()
        found = re.findall(r'^loopgate_request_ends_total\{([^}]*)\} (\d+)', text, re.MULTILINE)
        counts = Counter()
        for labels, count in found:
            counts[re.search(r'end="([^"]+)"', labels)[1]] += int(count)
        return counts

    def access_log(self) -> dict[str, list[dict]]:
        """The lines of the access log, by request id."""
        lines = {}
        for text in (self.work / "log").read_text().splitlines():
            line = json.loads(text)
            fields = line.get("fields", line)
            if line.get("target") == "loopgate::access":
                lines.setdefault(fields["request_id"], []).append(fields)
        return lines


def disagreement(seen: dict, lines: list[dict]) -> str | None:
    """How the client's outcome and the access log of a request disagree; None if they agree."""
    if seen["outcome"] == "wrong":
        return "the response is whole, but not the gateway's"
    if seen["outcome"] == "hung":
        return "neither whole nor visibly broken after 15 s"
    if len(lines) > 1:
        return f"{len(lines)} lines in the log"
    if not lines:
        return None if seen["status"] is None else "no line in the log"
    line = lines[0]
    if seen["outcome"] == "whole":
        if line.get("status") != seen["status"]:
            return "another status in the log"
        if seen["status"] == 200 and (line.get("end") != "complete" or line.get("bytes") != seen["bytes"]):
            return "complete for the client, but not in the log"
        if seen["status"] != 200 and line.get("end") == "complete":
            return "loopgate's own response is logged as the gateway's"
    elif line.get("bytes", 0) < seen["bytes"]:
        return "fewer bytes in the log than the client got"
    elif line.get("end") == "complete":
        return "broken for the client, complete in the log"
    return None


def main() -> int:
    random.seed(int(os.environ.get("FIDELITY_SEED", "1")))
    with tempfile.TemporaryDirectory(prefix="outage-") as directory:
        work = Path(directory)
        ca, cert, key = certificate(work)
        gateway = Gateway()
        sidecar = Sidecar("loopgate", os.environ["LOOPGATE_BINARY"], signal.SIGTERM, work, gateway.port, cert, key).start()
        kill_thread = threading.Thread(target=gateway.kill_repeatedly)
        try:
            kill_thread.start()
            load = subprocess.run(["node", HERE / "load.mjs", f"https://127.0.0.1:{sidecar.port}", str(SECONDS)],
                                  stdout=subprocess.PIPE, text=True, env={**os.environ, "CA": str(ca)}, timeout=SECONDS + 60, check=True)
            time.sleep(0.5)
            ends = sidecar.ends_in_metrics()
        finally:
            gateway.ended.set()
            if kill_thread.ident:
                kill_thread.join()
            gateway.stop()
            sidecar.stop()
        log = sidecar.access_log()
    requests = [json.loads(line) for line in load.stdout.splitlines()]
    wrong = Counter()
    for seen in requests:
        if why := disagreement(seen, log.get(seen["id"], [])):
            wrong[why] += 1
            if wrong[why] <= 3:
                print(f"  {why}: {seen} {log.get(seen['id'])}")
    logged = Counter(line.get("end") for lines in log.values() for line in lines)
    outcomes = Counter(f"{seen['outcome']} {seen['status'] or 'without status'}" for seen in requests)
    print(f"{len(requests)} requests in {SECONDS:.0f} s, the gateway killed {gateway.kills} times: {dict(outcomes)}")
    print(f"ends in the log: {dict(logged)}")
    if ends != logged:
        print(f"FAILED: ends in the metrics differ: {dict(ends)}")
    for why, count in wrong.items():
        print(f"FAILED: {count} requests: {why}")
    enough = len(requests) > 100 and gateway.kills > 2 and any(name.startswith("broken") for name in outcomes)
    if not enough:
        print("FAILED: too few requests, restarts or broken responses")
    return 1 if wrong or ends != logged or not enough else 0


if __name__ == "__main__":
    sys.exit(main())
