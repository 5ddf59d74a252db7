//! A commented file for each role, to begin with.

/// What begins every file.
const HEAD: &str = r#"# A configuration of `cdp serve`. Any number of roles may stand in one file.
# Paths are from this file's directory on. `kill -HUP` reads it again.

# The identity of this process (made at the first start; `cdp identity DIR` prints its fingerprint), and caches.
state = "state"
# Where Prometheus and `cdp top` find /metrics: a port of its own for each process of a machine.
metrics = "127.0.0.1:9464"
# How long a stop (SIGTERM) waits until everything under way is safe.
drain = "30s"

# Everybody this process talks to, by fingerprint; but for a gateway, which goes by tickets. `tenant` says whose groups he may
# name; "*" is for one's own parts.
[[peer]]
name = "the part at the other end"
fingerprint = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
tenant = "*"
"#;

const FILTER: &str = r#"
# Serves disks over NBD, captures every write, sends it on.
[filter]
# Source proxies; when the first is lost the next one takes over. A replica host may stand here too, or a gateway before it.
to = ["cdp://127.0.0.1:10820"]
# Where it is a gateway: what that lets in, made with `cdp ticket` for this process's fingerprint. The [[peer]] is the host.
# ticket = "provider.ticket"
# What is captured and not yet durable waits here: first in memory, then on disk; beyond it changes are only tracked.
spool = { memory = "1GiB", disk = "8GiB" }

[[filter.group]]
name = "web"
listen = "nbd://127.0.0.1:10809"
# policy = { rpo = "15s", window = "4h", points = "every-write" }

[[filter.group.disk]]
name = "root"
source = "web.img"

# A consistency set: groups that are restored together, whose common points this filter cuts. It finds those of other hosts
# where their filters listen for it (`listen = "HOST:PORT"` in [filter]); their files have the same set without `members`.
# [[set]]
# name = "shop"
# groups = ["web", "db"]
# every = "15s"
# members = ["cdp://10.0.0.2:10821/db"]
"#;

const SOURCE_PROXY: &str = r#"
# Takes records from filters, compresses and sends them.
[source-proxy]
listen = "0.0.0.0:10820"
# Gateways or target proxies, or replica hosts.
to = ["cdp://127.0.0.1:10840"]
# Where the next hop is a gateway: what it lets in, made with `cdp ticket` for this process's fingerprint.
# ticket = "provider.ticket"
# Records on their way, shared by all groups.
cache = { memory = "1GiB", disk = "50GiB" }
# The highest level of zstd.
level = 3

# Network traffic rules. Without one what leaves private ranges is encrypted, and nothing is limited.
# [[rule]]
# name = "office hours"
# from = "10.0.0.0/8"
# to = "0.0.0.0/0"
# limit = "20MB"
# times = ["mon-fri 08:00-18:00"]
"#;

const GATEWAY: &str = r#"
# The provider's one open port: lets in who has a ticket, and passes on what it cannot read.
[gateway]
listen = "0.0.0.0:10830"
ticket-key = "ticket.key"
connections-per-tenant = 256
# Bytes a second of one tenant, both ways and all its tickets together. What a ticket says holds beside it.
# rate-per-tenant = "100MB"

# Target proxies, by the names that tickets have as their routes.
[gateway.to]
target-1 = "127.0.0.1:10840"
"#;

const TARGET_PROXY: &str = r#"
# Takes records from source proxies, hands them to replica hosts.
[target-proxy]
listen = "0.0.0.0:10840"
to = ["cdp://127.0.0.1:10850"]
# Behind a gateway: a copy of its file of keys, and by which name it knows this proxy.
# ticket-key = "ticket.key"
# route = "target-1"
cache = { memory = "1GiB", disk = "50GiB" }
"#;

const REPLICA_HOST: &str = r#"
# Keeps a replica of each group in DIRECTORY/TENANT/GROUP, on which every command works as on any other.
[replica-host]
listen = "0.0.0.0:10850"
directory = "replicas"
groups-max = 1000
# quota = "2TiB"
# key-file = "at-rest.key"
# Directly behind a gateway, without a target proxy: whose tickets are believed, and by which name the gateway knows this host.
# ticket-key = "ticket.key"
# route = "host-1"
"#;

/// The roles that there are examples of.
pub const ROLES: [&str; 5] = ["filter", "source-proxy", "gateway", "target-proxy", "replica-host"];

/// A commented file with this role; none for what is no role.
#[must_use]
pub fn of(role: &str) -> Option<String> {
    let table = match role {
        "filter" => FILTER,
        "source-proxy" => SOURCE_PROXY,
        "gateway" => GATEWAY,
        "target-proxy" => TARGET_PROXY,
        "replica-host" => REPLICA_HOST,
        _ => return None,
    };
    Some(format!("{HEAD}{table}"))
}
