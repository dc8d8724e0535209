"""The proxies: loopgate and its peers, with the same certificate and the same backend."""

import itertools
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

NGINX = """daemon off; master_process on; worker_processes 2; pid {work}/nginx.pid; error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  client_max_body_size 0;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream gateway {{ server 127.0.0.1:{backend}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key};
    location / {{
      proxy_pass http://gateway; proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off;
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""
HAPROXY = """global
    maxconn 1024
    log stderr format raw local0 emerg
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
    option forwardfor
frontend front
    bind 127.0.0.1:{port} ssl crt {pem} alpn h2,http/1.1
    http-request set-header X-Forwarded-Proto https
    default_backend gateway
backend gateway
    server gateway 127.0.0.1:{backend}
"""
CADDY = """{{
	admin off
	auto_https off
	persist_config off
	grace_period 8s
	servers {{
		enable_full_duplex
	}}
}}
https://127.0.0.1:{port} {{
	bind 127.0.0.1
	tls {cert} {key}
	reverse_proxy 127.0.0.1:{backend} {{
		flush_interval -1
	}}
}}
"""


# Ports below net.ipv4.ip_local_port_range: the kernel assigns none of these to another program meanwhile.
PORTS = itertools.count(20_000)


def free_port() -> int:
    for port in PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, f"{process.args[0]} did not start:\n{log.read_text()[-2000:]}"
            time.sleep(0.05)


class Peer:
    """A proxy. `graceful` is the signal at which it finishes its connections and exits."""

    def __init__(self, name: str, binary: str, graceful: signal.Signals, work: Path, backend: int, cert: Path, key: Path):
        self.name, self.binary, self.graceful, self.backend = name, binary, graceful, backend
        self.work = work / name.replace(" ", "-").replace("/", "-")
        self.cert, self.key, self.port, self.process = cert, key, free_port(), None
        self.work.mkdir(parents=True)

    def command(self) -> list[str]:
        pem = self.work / "pem"
        pem.write_text(self.cert.read_text() + self.key.read_text())
        values = dict(port=self.port, backend=self.backend, cert=self.cert, key=self.key, pem=pem, work=self.work)
        kind, config = self.name.split()[0], self.work / "config"
        if kind == "nginx":
            config.write_text(NGINX.format(**values))
            return [self.binary, "-p", str(self.work), "-c", str(config), "-e", str(self.work / "error.log")]
        if kind == "HAProxy":
            config.write_text(HAPROXY.format(**values))
            return [self.binary, "-db", "-f", str(config)]
        if kind == "Caddy":
            config.write_text(CADDY.format(**values))
            return [self.binary, "run", "--config", str(config), "--adapter", "caddyfile"]
        return [self.binary, "run", "--docker", "off", "--admin", "off", "--gateway", f"127.0.0.1:{self.backend}",
                "--listen", f"127.0.0.1:{self.port}", "--state-dir", str(self.work / "state"),
                "--tls-cert", str(self.cert), "--tls-key", str(self.key), "--log-level", "warn"]

    def start(self) -> "Peer":
        log = self.work / "log"
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.work), "XDG_DATA_HOME": str(self.work), "XDG_CONFIG_HOME": str(self.work)}
        with open(log, "a") as output:
            self.process = subprocess.Popen(self.command(), stdout=output, stderr=output, env=environment)
        wait_for(self.port, self.process, log)
        return self

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def version(binary: str, *arguments: str) -> str:
    output = subprocess.run([binary, *arguments], capture_output=True, text=True)
    words = (output.stdout + output.stderr).replace("nginx/", " ").split()
    return next(word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit())


def all_peers(work: Path, backend: int, cert: Path, key: Path) -> list[Peer]:
    """loopgate, then the peers whose paths are in the environment."""
    peers = [Peer("loopgate", os.environ["LOOPGATE_BINARY"], signal.SIGTERM, work, backend, cert, key)]
    for variable, name, flag, graceful in [
        ("PEER_NGINX", "nginx", "-v", signal.SIGQUIT), ("PEER_NGINX_NEW", "nginx", "-v", signal.SIGQUIT),
        ("PEER_HAPROXY", "HAProxy", "-v", signal.SIGUSR1), ("PEER_HAPROXY_NEW", "HAProxy", "-v", signal.SIGUSR1),
        ("PEER_CADDY", "Caddy", "version", signal.SIGTERM),
    ]:
        if binary := os.environ.get(variable):
            number = ".".join(version(binary, flag).split("-")[0].split(".")[:2])
            peers.append(Peer(f"{name} {number}", binary, graceful, work, backend, cert, key))
    return peers
