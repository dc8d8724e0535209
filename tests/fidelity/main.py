"""Runs every case with loopgate and its peers, and prints the results as a table.

Fails if loopgate fails a case that a peer passes and that is not in limits.py.
"""

import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from cases import CASES, Context
from limits import LIMITS
from peers import all_peers, free_port

HERE = Path(__file__).parent


def certificate(work: Path) -> tuple[Path, Path, Path]:
    """Makes a CA and a certificate for 127.0.0.1; returns the paths of the CA, the chain and the key."""
    ca, ca_key, cert, key, request, extensions = (work / name for name in ("ca.pem", "ca.key", "cert.pem", "key.pem", "request.pem", "extensions"))
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for command in [
        ["req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-subj", "/CN=fidelity", "-days", "2"],
        ["req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1"],
        ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", cert],
    ]:
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return ca, cert, key


def run_case(peer, context, function) -> tuple[str, bool | None]:
    """Runs a case with a peer; returns the text for the table, and whether the behaviour was right, or None if it was not tested."""
    try:
        return function(context, peer)
    except Exception as error:
        if os.environ.get("FIDELITY_DEBUG"):
            traceback.print_exc()
        return f"{type(error).__name__}: {error}"[:60], False
    finally:
        # The case may have ended the proxy.
        if peer.process.poll() is not None:
            peer.start()


def main() -> int:
    wanted = [(title, function) for title, function in CASES if not sys.argv[1:] or any(word in title for word in sys.argv[1:])]
    with tempfile.TemporaryDirectory(prefix="fidelity-") as directory:
        work = Path(directory)
        ca, cert, key = certificate(work)
        port = free_port()
        backend = subprocess.Popen(["node", HERE / "backend.mjs", str(port)], stdout=subprocess.PIPE, text=True)
        peers = []
        try:
            assert backend.stdout.readline() == "ready\n", "the backend did not start"
            peers = all_peers(work, port, cert, key)
            context = Context(ca, work)
            for peer in peers:
                peer.start()
            print("| case | " + " | ".join(peer.name for peer in peers) + " |", flush=True)
            print("| --- |" + " --- |" * len(peers), flush=True)
            behind, alone, outdated = [], [], []
            for title, function in wanted:
                assert backend.poll() is None, "the backend died"
                results = [run_case(peer, context, function) for peer in peers]
                row = [f"{'' if right is None else 'ok: ' if right else 'WRONG: '}{text}".replace("|", "/") for text, right in results]
                print(f"| {title} | " + " | ".join(row) + " |", flush=True)
                ours, others = results[0][1], [right for _, right in results[1:]]
                if ours is False:
                    (behind if True in others else alone).append(title)
                elif ours and title in LIMITS:
                    outdated.append(title)
        finally:
            for peer in peers:
                peer.stop()
            backend.kill()
            backend.wait()
    for title in alone:
        print(f"neither loopgate nor a peer passes: {title}")
    for title in outdated:
        print(f"passes now, remove it from limits.py: {title}")
    for title in behind:
        print(f"known limit: {title}: {LIMITS[title]}" if title in LIMITS else f"FAILED: a peer passes, loopgate does not: {title}")
    failed = [title for title in behind if title not in LIMITS]
    print(f"{len(wanted)} cases, {len(peers)} proxies; loopgate is behind a peer in {len(behind)}, {len(behind) - len(failed)} of them known limits")
    return 1 if failed or not wanted else 0


if __name__ == "__main__":
    sys.exit(main())
