//! The systems that take turns: how each is brought to balance a service, and made to go without a trace.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_ebpf::abi::Proto;
use lb_tests::{
    agent::Agent,
    lab::{self, end},
};

use crate::{
    field::{Field, HTTP, Service},
    interrupt,
    options::Peer,
};

/// What takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// No balancer: the client knows the backends, the kernel forwards.
    Direct,
    /// The same with complete checksums from the client, as XDP needs them.
    DirectComplete,
    /// No balancer, the client is on the balancer's host.
    DirectLocal,
    /// Ours, TC.
    Tc,
    /// Ours, XDP; the client computes its checksums.
    Xdp,
    /// Ours, the client is on the balancer's host.
    Socket,
    Nftables,
    Flowtable,
    Iptables,
    Haproxy,
    HaproxyHttp,
    Nginx,
    Ipvs,
}

/// All, in the order of their turns.
const ALL: [System; 13] = [
    System::Direct,
    System::Tc,
    System::DirectComplete,
    System::Xdp,
    System::DirectLocal,
    System::Socket,
    System::Nftables,
    System::Flowtable,
    System::Iptables,
    System::Ipvs,
    System::Haproxy,
    System::HaproxyHttp,
    System::Nginx,
];

/// Returns the systems that take turns if these peers are wanted; all if none is named.
pub fn chosen(peers: &[Peer]) -> Vec<System> {
    let wanted = |system: &System| peers.is_empty() || system.peer().is_none_or(|peer| peers.contains(&peer));
    ALL.into_iter().filter(wanted).collect()
}

impl System {
    /// Returns its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectComplete => "direct, complete checksums",
            Self::DirectLocal => "direct, local client",
            Self::Tc => "ours, TC",
            Self::Xdp => "ours, XDP",
            Self::Socket => "ours, socket hook",
            Self::Nftables => "nftables",
            Self::Flowtable => "nftables, flowtable",
            Self::Iptables => "iptables",
            Self::Haproxy => "HAProxy, tcp",
            Self::HaproxyHttp => "HAProxy, http",
            Self::Nginx => "nginx, stream",
            Self::Ipvs => "IPVS",
        }
    }

    const fn peer(self) -> Option<Peer> {
        match self {
            Self::Direct | Self::DirectComplete | Self::DirectLocal | Self::Tc | Self::Xdp | Self::Socket => None,
            Self::Nftables => Some(Peer::Nftables),
            Self::Flowtable => Some(Peer::Flowtable),
            Self::Iptables => Some(Peer::Iptables),
            Self::Haproxy => Some(Peer::Haproxy),
            Self::HaproxyHttp => Some(Peer::HaproxyHttp),
            Self::Nginx => Some(Peer::Nginx),
            Self::Ipvs => Some(Peer::Ipvs),
        }
    }

    /// Returns whether somebody else made it.
    pub const fn is_peer(self) -> bool {
        self.peer().is_some()
    }

    const fn is_direct(self) -> bool {
        matches!(self, Self::Direct | Self::DirectComplete | Self::DirectLocal)
    }

    /// Returns why it cannot balance a service on this machine, if so.
    pub fn lacks(self, field: &Field, service: &Service) -> Option<String> {
        let program = |name: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let found = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
            (!found).then(|| format!("{name} is not installed"))
        };
        match (self, service.proto) {
            (Self::Direct | Self::DirectComplete | Self::DirectLocal | Self::Tc | Self::Xdp | Self::Socket, _) => None,
            (Self::Haproxy | Self::HaproxyHttp, Proto::Udp) => Some("HAProxy balances no UDP".to_owned()),
            (Self::HaproxyHttp, Proto::Tcp) if service.port != HTTP => Some("it balances HTTP only".to_owned()),
            (Self::Haproxy | Self::HaproxyHttp, Proto::Tcp) => program("haproxy"),
            (Self::Nginx, _) => program("nginx"),
            (Self::Nftables, _) => program("nft"),
            (Self::Flowtable, _) => program("nft").or_else(|| lacks_flowtables(&field.lab.balancer())),
            (Self::Iptables, _) => program("iptables-nft-restore"),
            (Self::Ipvs, _) => lacks_ipvs().or_else(|| program("ipvsadm")),
        }
    }
}

/// Returns what is wrong if the kernel knows no IPVS.
fn lacks_ipvs() -> Option<String> {
    let there = || Path::new("/proc/net/ip_vs").exists();
    if !there() {
        let _built_in_or_missing = Command::new("modprobe").args(["-q", "ip_vs"]).output();
    }
    (!there()).then(|| "this kernel has no IPVS (CONFIG_IP_VS)".to_owned())
}

/// Returns what is wrong if the kernel makes no flowtable.
fn lacks_flowtables(namespace: &str) -> Option<String> {
    let made = apply_nft(namespace, &format!("table ip lbprobe {{\n{FLOWTABLE}}}\n"));
    let _never_made = remove_table(namespace, "lbprobe").output();
    made.err().map(|error| format!("this kernel makes no flowtable (CONFIG_NF_FLOW_TABLE): {error}"))
}

/// Returns the name of what a system is compared with: the same without a balancer, under the same conditions.
pub fn reference(system: &str) -> Option<&'static str> {
    let without = [(System::Xdp, System::DirectComplete), (System::Socket, System::DirectLocal)];
    if ALL.iter().any(|one| one.is_direct() && one.name() == system) {
        return None;
    }
    let special = without.iter().find(|(one, _)| one.name() == system).map(|(_, direct)| direct.name());
    Some(special.unwrap_or(System::Direct.name()))
}

/// A system that balances; it ends with this.
pub struct Running<'f> {
    field: &'f Field,
    /// The namespace of the client.
    pub client: String,
    /// Where the client finds the service.
    pub targets: Vec<SocketAddrV4>,
    agent: Option<Agent>,
    child: Option<Child>,
    undo: Vec<Command>,
    folder: tempfile::TempDir,
}

/// How long a system may take until it balances.
const START: Duration = Duration::from_secs(20);

impl<'f> Running<'f> {
    /// Starts a system and waits until it balances.
    pub fn start(system: System, field: &'f Field, service: &Service) -> Result<Self> {
        let lab = &field.lab;
        let client = if matches!(system, System::DirectLocal | System::Socket) { lab.balancer() } else { lab.client() };
        let targets = if system.is_direct() { service.endpoints() } else { vec![service.frontend()] };
        let folder = tempfile::tempdir().context("a folder for its files")?;
        let mut running = Self { field, client, targets, agent: None, child: None, undo: Vec::new(), folder };
        if matches!(system, System::DirectComplete | System::Xdp) {
            running.complete_checksums();
        }
        match system {
            System::Direct | System::DirectComplete | System::DirectLocal => {}
            System::Tc | System::Socket => running.start_agent(service, &["--hook", "tc"]),
            System::Xdp => running.start_agent(service, &["--hook", "xdp", "--complete-checksums"]),
            System::Nftables => running.start_nftables(&nft_rules(service))?,
            System::Flowtable => running.start_nftables(&(nft_rules(service) + &flowtable_rules(service)))?,
            System::Iptables => running.start_iptables(service)?,
            System::Ipvs => running.start_ipvs(service)?,
            System::Haproxy => running.start_haproxy(service, "tcp")?,
            System::HaproxyHttp => running.start_haproxy(service, "http")?,
            System::Nginx => running.start_nginx(service)?,
        }
        if running.child.is_some() {
            running.wait_until_it_listens(service)?;
        }
        if service.bears_checks {
            running.wait_until_it_accepts()?;
        }
        Ok(running)
    }

    /// Returns a file of the system's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the process, if the system is one.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn complete_checksums(&mut self) {
        let client = self.field.lab.client();
        let set = |state: &str| {
            let mut command = lab::command_in(&client, "ethtool");
            command.args(["-K", "cl0", "tx", state]);
            command
        };
        lab::run(&mut set("off"));
        self.undo.push(set("on"));
    }

    fn start_agent(&mut self, service: &Service, hook: &[&str]) {
        let publish = format!("{}/{}", service.frontend(), service.proto);
        let endpoints: Vec<String> = service.endpoints().iter().map(ToString::to_string).collect();
        let mut arguments = vec!["--uplink", "up0", "--publish", &publish];
        arguments.extend(hook);
        if !service.bears_checks {
            arguments.extend(["--health", "none"]);
        }
        for endpoint in &endpoints {
            arguments.extend(["--backend", endpoint]);
        }
        let lab = &self.field.lab;
        let agent = Agent::start(Some(&lab.balancer()), &lab.instance(), &arguments);
        agent.wait_ready(endpoints.len() as u64);
        self.agent = Some(agent);
    }

    fn start_nftables(&mut self, rules: &str) -> Result<()> {
        let balancer = self.field.lab.balancer();
        forget_connections(&balancer)?;
        apply_nft(&balancer, rules)?;
        self.undo.push(remove_table(&balancer, "lbbench"));
        Ok(())
    }

    /// By the nftables back end of iptables, which is what distributions have: its tables can be removed whole.
    fn start_iptables(&mut self, service: &Service) -> Result<()> {
        let balancer = self.field.lab.balancer();
        forget_connections(&balancer)?;
        self.undo.push(remove_table(&balancer, "nat"));
        replace_iptables(&balancer, service)
    }

    fn start_ipvs(&mut self, service: &Service) -> Result<()> {
        let balancer = self.field.lab.balancer();
        let kind = if service.proto == Proto::Tcp { "-t" } else { "-u" };
        let at = service.frontend().to_string();
        let mut clear = lab::command_in(&balancer, "ipvsadm");
        clear.arg("-C");
        self.undo.push(clear);
        checked(lab::command_in(&balancer, "ipvsadm").args(["-A", kind, &at, "-s", "rr"]))?;
        for endpoint in service.endpoints() {
            let endpoint = endpoint.to_string();
            checked(lab::command_in(&balancer, "ipvsadm").args(["-a", kind, &at, "-r", &endpoint, "-m"]))?;
        }
        Ok(())
    }

    fn start_haproxy(&mut self, service: &Service, mode: &str) -> Result<()> {
        let socket = self.file("admin");
        let mut config = format!(
            "global\n  maxconn 4000\n  stats socket {} mode 600 level admin\n\
             defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
             frontend clients\n  bind {} backlog 8192\n  default_backend servers\n\
             backend servers\n  balance roundrobin\n",
            socket.display(),
            service.frontend(),
        );
        let check = if service.bears_checks { " check inter 2s" } else { "" };
        for (number, endpoint) in service.endpoints().iter().enumerate() {
            let _infallible = writeln!(config, "  server s{number} {endpoint}{check}");
        }
        let path = self.file("haproxy.cfg");
        fs::write(&path, config).context("write haproxy's configuration")?;
        self.spawn("haproxy", &["-f".as_ref(), path.as_os_str(), "-db".as_ref()])
    }

    fn start_nginx(&mut self, service: &Service) -> Result<()> {
        fs::write(self.file("nginx.conf"), self.nginx_config(service)).context("write nginx's configuration")?;
        let path = self.file("nginx.conf");
        self.spawn("nginx", &["-c".as_ref(), path.as_os_str()])
    }

    /// Returns nginx's configuration for a service.
    pub fn nginx_config(&self, service: &Service) -> String {
        let mut servers = String::new();
        for endpoint in service.endpoints() {
            let _infallible = write!(servers, "server {endpoint}; ");
        }
        let listen = match service.proto {
            Proto::Tcp => format!("listen {} backlog=8192;", service.frontend()),
            Proto::Udp => format!("listen {} udp reuseport; proxy_timeout 2s;", service.frontend()),
        };
        format!(
            "load_module modules/ngx_stream_module.so; user root; daemon off; worker_processes auto; \
             worker_rlimit_nofile 65536; pid {}; error_log {}; events {{ worker_connections 16384; }} \
             stream {{ upstream servers {{ {servers} }} server {{ {listen} proxy_pass servers; }} }}\n",
            self.file("pid").display(),
            self.file("error").display(),
        )
    }

    fn spawn(&mut self, program: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
        let log = fs::File::create(self.file("log")).context("a file for its log")?;
        let mut command = self.field.lab.command(&self.field.lab.balancer(), program);
        command.args(arguments).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("start {program}"))?);
        Ok(())
    }

    fn wait_until_it_listens(&mut self, service: &Service) -> Result<()> {
        let balancer = self.field.lab.balancer();
        self.wait_until("it does not listen", || match listens(&balancer, service) {
            Ok(true) => Ok(()),
            Ok(false) => Err(anyhow!("no socket at {}/{}", service.frontend(), service.proto)),
            Err(error) => Err(error.into()),
        })
    }

    fn wait_until_it_accepts(&mut self) -> Result<()> {
        let (client, targets) = (self.client.clone(), self.targets.clone());
        self.wait_until("it does not accept connections", || {
            lab::inside(&client, || {
                targets.iter().try_for_each(|&at| {
                    TcpStream::connect_timeout(&at.into(), Duration::from_millis(300))
                        .map(|_| ())
                        .with_context(|| format!("connect to {at}"))
                })
            })
        })
    }

    fn wait_until(&mut self, complaint: &'static str, attempt: impl Fn() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        loop {
            let Err(error) = attempt() else { return Ok(()) };
            interrupt::check()?;
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().context("look after the process")?
            {
                let log = fs::read_to_string(self.file("log")).unwrap_or_default();
                bail!("it ended, {status}: {}", log.lines().last().unwrap_or_default());
            }
            if start.elapsed() > START {
                return Err(error.context(complaint));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Returns whether there is a socket that waits for a service's clients.
///
/// # Source
/// Documentation/networking/proc_net_tcp.rst: the second field is the local address, the fourth the state, 10 is
/// TCP_LISTEN.
fn listens(namespace: &str, service: &Service) -> std::io::Result<bool> {
    let table = format!("/proc/thread-self/net/{}", service.proto);
    let text = lab::inside(namespace, || fs::read_to_string(table))?;
    let port = format!(":{:04X}", service.port);
    Ok(text.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1).is_some_and(|local| local.ends_with(&port));
        local && (service.proto == Proto::Udp || fields.get(3) == Some(&"0A"))
    }))
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // nginx's workers end with their master only if it is asked to end.
            lab::interrupt(child);
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(3) {
                thread::sleep(Duration::from_millis(10));
            }
            end(child);
        }
        for command in &mut self.undo {
            let _gone_already = command.output();
        }
    }
}

/// Returns rules that take connections to the backends in turn.
fn nft_rules(service: &Service) -> String {
    format!(
        "table ip lbbench {{\nchain prerouting {{\ntype nat hook prerouting priority dstnat; policy accept;\n{}\n}}\n}}\n",
        nft_rule(service)
    )
}

/// Returns what replaces the rule of [`nft_rules`], in one transaction.
pub fn nft_replacement(service: &Service) -> String {
    format!("flush chain ip lbbench prerouting\nadd rule ip lbbench prerouting {}\n", nft_rule(service))
}

fn nft_rule(service: &Service) -> String {
    let at = service.frontend();
    let elements = service.backends.iter().enumerate().map(|(number, backend)| format!("{number} : {backend}"));
    format!(
        "ip daddr {} {} dport {} dnat to numgen inc mod {} map {{ {} }}",
        at.ip(),
        service.proto,
        at.port(),
        service.backends.len(),
        elements.collect::<Vec<_>>().join(", "),
    )
}

/// Replaces the table `nat` in one transaction.
pub fn replace_iptables(namespace: &str, service: &Service) -> Result<()> {
    let file = tempfile::NamedTempFile::new().context("a file for the rules")?;
    fs::write(file.path(), iptables_rules(service)).context("write the rules")?;
    checked(lab::command_in(namespace, "iptables-nft-restore").arg(file.path()))
}

/// Of what is left by the rules before it, each takes its share.
fn iptables_rules(service: &Service) -> String {
    let (at, endpoints) = (service.frontend(), service.endpoints());
    let mut rules = "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n".to_owned();
    for (nth, endpoint) in endpoints.iter().enumerate() {
        let _infallible = writeln!(
            rules,
            "-A PREROUTING -d {} -p {} --dport {} -m statistic --mode nth --every {} --packet 0 -j DNAT \
             --to-destination {endpoint}",
            at.ip(),
            service.proto,
            at.port(),
            endpoints.len() - nth,
        );
    }
    rules + "COMMIT\n"
}

/// For the devices between which packets are forwarded.
const FLOWTABLE: &str = "flowtable fast {\nhook ingress priority 0; devices = { up0, br0 };\n}\n";

fn flowtable_rules(service: &Service) -> String {
    format!(
        "table ip lbbench {{\n{FLOWTABLE}chain forward {{\ntype filter hook forward priority filter; policy accept;\n\
         ip protocol {} flow add @fast\n}}\n}}\n",
        service.proto
    )
}

/// Applies rules in one transaction.
pub fn apply_nft(namespace: &str, rules: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new().context("a file for the rules")?;
    fs::write(file.path(), rules).context("write the rules")?;
    checked(lab::command_in(namespace, "nft").arg("-f").arg(file.path()))
}

fn remove_table(namespace: &str, table: &str) -> Command {
    let mut command = lab::command_in(namespace, "nft");
    command.args(["delete", "table", "ip", table]);
    command
}

/// Empties the table of tracked connections, which outlast the rules that made them: a turn must not pay for those before.
fn forget_connections(namespace: &str) -> Result<()> {
    checked(lab::command_in(namespace, "conntrack").arg("--flush"))
}

/// Runs a command that has to succeed.
pub fn checked(command: &mut Command) -> Result<()> {
    let program = command.get_args().nth(1).unwrap_or_default().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    // nft begins with the place in the file.
    let complaint = complaint.trim().lines().next().unwrap_or_default();
    let complaint = complaint.split_once("Error: ").map_or(complaint, |(_, what)| what);
    ensure!(output.status.success(), "{program}: {complaint}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_and_the_references_are_always_there() {
        let systems = chosen(&[Peer::Haproxy]);

        assert!(systems.contains(&System::Direct) && systems.contains(&System::Tc));
        assert!(systems.contains(&System::Haproxy) && !systems.contains(&System::Nginx));
        assert_eq!(chosen(&[]).len(), ALL.len());
    }

    #[test]
    fn each_is_compared_with_the_same_without_a_balancer() {
        assert_eq!(reference("ours, XDP"), Some("direct, complete checksums"));
        assert_eq!(reference("nftables"), Some("direct"));
        assert_eq!(reference("direct"), None);
    }

    #[test]
    fn rules_take_backends_in_turn() {
        let backends = vec!["198.18.2.11".parse().unwrap(), "198.18.2.12".parse().unwrap()];
        let service = Service { port: 80, proto: Proto::Tcp, backends, bears_checks: true };

        let rules = nft_rules(&service);

        assert!(rules.contains("ip daddr 198.18.1.1 tcp dport 80"), "{rules}");
        assert!(rules.contains("numgen inc mod 2 map { 0 : 198.18.2.11, 1 : 198.18.2.12 }"), "{rules}");
        let rules = iptables_rules(&service);
        assert!(rules.contains("--every 2 --packet 0 -j DNAT --to-destination 198.18.2.11:80\n"), "{rules}");
        assert!(rules.contains("--every 1 --packet 0 -j DNAT --to-destination 198.18.2.12:80\n"), "{rules}");
    }
}
