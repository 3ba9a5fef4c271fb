//! The balancer without its agent: the datapath as the agent drives it, publication by publication.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_ebpf::abi::Lifetimes;
use lb_tests::lab::{self, Lab};
use lb_user::{
    config::{Guard, Hook, TcAttach},
    control::{ContainerId, WHOLE},
    datapath::{
        Datapath, Opening,
        doors::Device,
        links::{Belief, Framing, Links},
        publish::{FrontendWish, Member, Scheduling},
        report::Way,
    },
};

use crate::{field::Service, yardstick::ifindex};

/// The name of the only service.
const SERVICE: &str = "bench";

/// A datapath in the balancer's namespace; it is taken out of the kernel with this.
pub struct Ours {
    namespace: String,
    datapath: Option<Datapath>,
    frontend: String,
}

impl Ours {
    /// Opens the datapath and serves a service's frontend, with nobody behind it yet.
    pub fn open(lab: &Lab, service: &Service) -> Result<Self> {
        let namespace = lab.balancer();
        let frontend = format!("{}/{}", service.port, service.proto);
        let wish = FrontendWish {
            service: SERVICE.to_owned(),
            guard: Guard::default(),
            name: frontend.clone(),
            proto: service.proto,
            addresses: BTreeSet::from([service.frontend().into()]),
            scheduling: Scheduling::PLAIN,
        };
        let uplink = ifindex(&namespace, "up0")?;
        let instance = lab.instance();
        let datapath = lab::inside(&namespace, || -> Result<Datapath> {
            let opening = Opening {
                instance: &instance,
                max_flows: 1_048_576,
                tc_attach: TcAttach::Auto,
                lifetimes: Lifetimes::DEFAULT,
            };
            let (mut datapath, _new) = Datapath::open(&opening)?;
            let device = Device { ifindex: uplink, name: "up0", framing: Framing::Ethernet };
            datapath.open_uplink(Hook::Tc, device)?;
            datapath.serve(&[wish])?;
            Ok(datapath)
        })?;
        Ok(Self { namespace, datapath: Some(datapath), frontend })
    }

    /// Finds the way to a backend that is reached like all others of its kind.
    pub fn way_to(&self, backend: Ipv4Addr) -> Result<Way> {
        lab::inside(&self.namespace, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let path = Links::open()?.resolve(backend.into(), Belief::Lost).await?;
                Ok(Way::new(path, (None, None)))
            })
        })
    }

    /// Returns a backend as it is published.
    pub fn member(&self, at: SocketAddrV4, way: &Way) -> Member {
        let endpoints = BTreeMap::from([(self.frontend.clone(), at.into())]);
        let (container, way) = (ContainerId(at.to_string()), way.clone());
        Member { container, endpoints, way, weight: 1, tenths: WHOLE, asleep: false }
    }

    /// Publishes; returns how long it took.
    pub fn publish(&mut self, ready: &[Member], draining: &[Member]) -> Result<Duration> {
        let datapath = self.datapath.as_mut().context("the datapath is open")?;
        lab::inside(&self.namespace, || {
            let start = Instant::now();
            let prepared = datapath.prepare(SERVICE, ready, draining)?;
            ensure!(prepared.unreachable.is_empty(), "unreachable: {:?}", prepared.unreachable);
            datapath.commit(prepared)?;
            Ok(start.elapsed())
        })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if let Some(datapath) = self.datapath.take()
            && let Err(error) = lab::inside(&self.namespace, || datapath.remove())
        {
            eprintln!("remove the datapath: {error}");
        }
    }
}
