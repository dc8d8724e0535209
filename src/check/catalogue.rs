//! All kinds of findings, with their ids, severities and meanings.

use super::finding::{Kind, Severity};
use Severity::{Error, Note, Warning};

macro_rules! kinds {
    ($($name:ident = $id:literal, $severity:ident, $means:literal;)*) => {
        $(
            #[doc = $means]
            pub static $name: Kind = Kind { id: $id, severity: $severity, means: $means };
        )*
        /// All kinds of findings, grouped by subject.
        pub static ALL: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    GATEWAY_DOWN = "gateway-down", Error, "Nothing accepts connections at the gateway's address.";
    GATEWAY_STARTING = "gateway-starting", Note, "The gateway is still starting.";
    GATEWAY_UNKNOWN = "gateway-unknown", Warning,
        "The server at the gateway's address does not answer like an OpenClaw gateway.";
    GATEWAY_TLS = "gateway-tls", Error, "The gateway speaks TLS itself; loopgate speaks plain HTTP with it.";
    GATEWAY_EXPOSED = "gateway-exposed", Error, "The gateway can be reached on an address of the bridge, past the \
                                                 sidecar.";
    GATEWAY_REMOTE = "gateway-remote", Warning,
        "The gateway's address is not loopback, so the gateway can't tell the lanes apart.";
    GATEWAY_COMMAND = "gateway-command", Warning,
        "The gateway's command line or environment (--bind, --force, OPENCLAW_GATEWAY_BIND) overrides its \
         configuration.";
    GATEWAY_MODE = "gateway-mode", Error, "The gateway's own configuration makes it a client of another gateway.";
    GATEWAY_PORT = "gateway-port", Error, "The gateway's own configuration names another port than loopgate's.";
    GATEWAY_AUTH = "gateway-auth", Error, "The gateway asks for no token and no password.";
    DEVICE_AUTH = "device-auth-off", Error,
        "The gateway's configuration lets clients connect without a device (dangerouslyDisableDeviceAuth); OpenClaw \
         2026.2 then gives them every scope.";
    HOST_ORIGIN = "origin-by-host", Warning,
        "The gateway accepts any page whose Origin equals its own Host header \
         (dangerouslyAllowHostHeaderOriginFallback), which DNS rebinding can forge.";
    INSECURE_AUTH = "insecure-auth", Warning,
        "The gateway's control page may connect without a device identity where it is not served by HTTPS \
         (allowInsecureAuth); loopgate serves HTTPS.";
    PROXY_AUTH_LOOPBACK = "trusted-proxy-auth", Error,
        "The gateway is in auth.mode \"trusted-proxy\", and refuses proxies on loopback \
         (`trusted_proxy_loopback_source`).";
    PROXY_AUTH_TOKEN = "trusted-proxy-token", Error,
        "The gateway is in auth.mode \"trusted-proxy\" and has a token as well, with which it refuses to start.";
    GATEWAY_FILES = "gateway-files", Warning,
        "A configured token file or state directory of the gateway can't be read.";
    IDENTITY_HEADER = "identity-header-open", Error,
        "The gateway takes a user's identity, or a proof of the proxy, from a header that any client can send through \
         loopgate.";
    PROXIES_MISSING = "trusted-proxies-missing", Error, "The gateway does not trust the address of the external lane.";
    PROXIES_LOOPBACK = "trusted-proxies-loopback", Error,
        "The gateway trusts 127.0.0.1 as a proxy, which makes several versions take their own local clients for remote \
         ones.";
    PROXIES_WIDE = "trusted-proxies-wide", Warning, "The gateway trusts more proxies than the external lane.";
    EXTERNAL_LOCAL = "external-lane-local", Error, "The gateway takes clients of the external lane for local ones.";
    LANES_UNKNOWN = "lanes-unknown", Warning,
        "How the gateway classifies the clients of each lane could not be determined.";
    ORIGIN = "origin-not-allowed", Warning, "The gateway refuses browsers that open a name in loopgate's certificate.";
    ORIGIN_ANY = "origin-any", Warning, "The gateway lets pages of any origin connect.";
    OWN_DEVICE_UNKNOWN = "own-device-unknown", Warning,
        "It could not be read whether the gateway (2026.2) has paired its own device for all scopes, without which its \
         own sub-agents fail.";
    OWN_DEVICE = "own-device-unpaired", Error,
        "The gateway (2026.2) has not paired its own device for all scopes, so its own sub-agents are closed with \
         `1008: pairing required`.";
    SETUP_CODE = "setup-code-url", Note,
        "The gateway has no URL of loopgate's for the setup codes of phones (`openclaw qr`, `/pair`); it then advises \
         gateway.bind=lan, which bypasses loopgate.";
    OPENCLAW_CONFIG = "openclaw-config", Error, "The gateway's own configuration can't be read.";
    OPENCLAW_UNREAD = "openclaw-config-unread", Note, "The gateway's own configuration was not checked, since no file \
                                                       was given.";
    OPENCLAW_INCLUDE = "openclaw-config-include", Note, "The gateway's own configuration includes other files, which \
                                                         were not read.";
    SIDECAR_DOWN = "sidecar-down", Warning, "No sidecar answers at the admin address.";
    SIDECAR_NOT_READY = "sidecar-not-ready", Error, "The sidecar runs, but is not ready.";
    CONFIG_PROBLEM = "config-problem", Warning, "The last reload was rejected, and the old configuration is still in \
                                                 use.";
    NAMESPACE = "namespace-orphaned", Error, "The container that owns this network namespace does not run, or has a \
                                              new one.";
    OWN_ADDRESSES = "own-addresses-shared", Warning,
        "Clients with an address of this network namespace are on the agent lane, but a rootless engine, or a program \
         that listens here, may give outside clients such an address.";
    MESH_PROXY = "mesh-proxy", Warning,
        "A service mesh's proxy listens in the gateway's network namespace: it delivers outside clients from the \
         namespace's own addresses.";
    OTHER_LISTENER = "other-listener", Note,
        "A program other than loopgate and the gateway accepts connections from outside in the gateway's network \
         namespace. If it is a proxy, its clients bypass the lanes.";
    DOCKER_MISSING = "docker-missing", Warning, "There is no Docker socket, so labels make no container an agent.";
    DOCKER_UNREACHABLE = "docker-unreachable", Error, "Docker can't be reached, so labels make no container an agent.";
    DOCKER_HOST = "docker-host-unused", Note,
        "DOCKER_HOST names another engine than the configuration; the configured one is used.";
    DOCKER_FORBIDDEN = "docker-forbidden", Error, "Docker, or the filter in front of it, forbids a request that \
                                                   loopgate needs.";
    DOCKER_WIDE = "docker-too-wide", Warning, "The Docker socket permits more than loopgate needs.";
    KUBERNETES_UNREACHABLE = "kubernetes-unreachable", Error, "The API server's pods can't be watched, so labels make \
                                                               no pod an agent.";
    KUBERNETES_FORBIDDEN = "kubernetes-forbidden", Error, "The API server forbids a request that loopgate needs: an \
                                                           RBAC rule is missing.";
    AGENT_HOST_NETWORK = "agent-host-network", Warning, "A labelled pod is on its node's network, so its address is \
                                                         not its own.";
    AGENT_LABEL = "agent-label", Warning, "A label loopgate.agent, or loopgate.dev/agent of a pod, can't be read.";
    AGENT_IMAGE = "agent-image-label", Warning, "A container's agent label is that of its image, or can't be compared \
                                                 with it, so it does not count.";
    AGENT_PROJECT = "agent-other-project", Warning, "A labelled container is in another compose project, so its label \
                                                     does not count.";
    AGENT_NETWORK = "agent-no-network", Warning, "A labelled container is on no network of the gateway's.";
    AGENT_NAMESPACE = "agent-shared-namespace", Warning, "A labelled container shares its network namespace, so its \
                                                          connections can't be identified.";
    AGENT_DOUBT = "agent-in-doubt", Warning,
        "Another container or pod, a bridge or a node has the address of a labelled container too.";
    AGENT_OWNER = "agent-owner-unknown", Warning, "It is not known which container owns this network namespace.";
    AGENT_NET_RAW = "agent-net-raw", Warning,
        "An agent by address can forge addresses, and so may its neighbours: its container has the capability NET_RAW.";
    BRIDGE_TRUSTED = "bridge-gateway-trusted", Error,
        "A list trusts the address of the bridge itself, from which every client of a published port may come.";
    AGENTS_WIDE = "agent-cidr-wide", Error, "A network whose addresses are all agents is as wide as the internet.";
    TRUSTED_WIDE = "trusted-proxy-wide", Warning, "A network whose addresses are all believed as proxies is as wide as \
                                                   the internet.";
    HTTP_API_OPEN = "http-api-open", Note,
        "External clients may use the gateway's HTTP API (/tools/, /v1/), for which its token is enough: no device has \
         to be approved.";
    FORWARD_DOWN = "forward-down", Warning,
        "Nothing accepts connections at a port of the gateway that listen.forward names.";
    PLAIN_HTTP = "plain-http", Note,
        "loopgate takes plain HTTP of trusted proxies (listen.plain), which anyone on the network between them reads \
         and changes.";
    CERTIFICATE_UNREADABLE = "certificate-unreadable", Error, "The certificate can't be read.";
    CERTIFICATE_PROBLEM = "certificate-problem", Warning, "The sidecar could not load or make a newer certificate.";
    CERTIFICATE_EXPIRED = "certificate-expired", Error, "The certificate is not valid now.";
    CERTIFICATE_EXPIRING = "certificate-expiring", Warning, "The certificate expires soon.";
    CERTIFICATE_CHAIN = "certificate-chain", Warning, "The file of the certificate lacks the certificate of its \
                                                       issuer, so most clients refuse it.";
    CERTIFICATE_NAMES = "certificate-names", Warning, "The certificate lacks a name or an address that clients may \
                                                       dial.";
    STATE_MISSING = "state-dir-missing", Note, "The state directory does not exist yet.";
    STATE_MODE = "state-dir-permissions", Error, "Others may read a key, or write where the keys are.";
    STATE_OWNER = "state-dir-owner", Error, "The state directory can't be written to.";
    CLOCK = "clock-skew", Warning, "This clock and the Docker host's differ.";
    CLOCK_CA = "clock-behind", Error, "This clock is before the start of the CA's validity.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_in_kebab_case() {
        for (i, kind) in ALL.iter().enumerate() {
            assert!(kind.id.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", kind.id);
            assert!(kind.means.ends_with('.'), "{}", kind.id);
            assert!(ALL[i + 1..].iter().all(|other| other.id != kind.id), "{}", kind.id);
        }
    }
}
