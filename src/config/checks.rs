//! Fields of KubeProxyConfiguration that take a number, a duration or a word, and those that are only checked.

use std::time::Duration;

use super::Conntrack;
use super::kube_proxy::Resolver;
use crate::model::parse;

const DEFAULT_OOM_SCORE: i64 = -999;
const DEFAULT_ESTABLISHED: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_CLOSE_WAIT: Duration = Duration::from_secs(3600);

impl Resolver<'_> {
    pub(super) fn oom_score_adj(&mut self) -> Option<i32> {
        self.within("oomScoreAdj", DEFAULT_OOM_SCORE, -1000..=1000).and_then(|score| i32::try_from(score).ok())
    }

    pub(super) fn conntrack(&mut self) -> Option<Conntrack> {
        let mut count = |field: &str| -> Option<Option<u32>> {
            let given = self.fields.int(field).is_some();
            let value = self.within(field, 0, 0..=i32::MAX.into())?;
            Some(u32::try_from(value).ok().filter(|_| given))
        };
        let (max_per_core, min) = (count("conntrack.maxPerCore"), count("conntrack.min"));
        let established = self.timeout("conntrack.tcpEstablishedTimeout", DEFAULT_ESTABLISHED);
        let close_wait = self.timeout("conntrack.tcpCloseWaitTimeout", DEFAULT_CLOSE_WAIT);
        let udp = self.timeout("conntrack.udpTimeout", Duration::ZERO);
        let udp_stream = self.timeout("conntrack.udpStreamTimeout", Duration::ZERO);
        Some(Conntrack {
            max_per_core: max_per_core?,
            min: min?,
            tcp_established_timeout: established?,
            tcp_close_wait_timeout: close_wait?,
            tcp_be_liberal: self.fields.bool("conntrack.tcpBeLiberal"),
            udp_timeout: udp?,
            udp_stream_timeout: udp_stream?,
        })
    }

    /// Fields without an effect, which kube-proxy checks all the same.
    pub(super) fn check_unused(&mut self, ipvs: bool) {
        self.within("clientConnection.burst", 0, 0..=i32::MAX.into());
        self.timeout("configSyncPeriod", Duration::ZERO);
        // kube-proxy takes the minor release before its own, whichever that is.
        let version = self.fields.string("showHiddenMetricsForVersion");
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !version.is_empty()
            && !version.split_once('.').is_some_and(|(major, minor)| is_number(major) && is_number(minor))
        {
            self.problem::<()>(
                "showHiddenMetricsForVersion",
                version,
                "must be empty or a minor release, such as 1.35",
            );
        }
        if !ipvs {
            return;
        }
        for field in ["ipvs.tcpTimeout", "ipvs.tcpFinTimeout", "ipvs.udpTimeout"] {
            self.timeout(field, Duration::ZERO);
        }
        for (index, cidr) in self.fields.strings("ipvs.excludeCIDRs").iter().enumerate() {
            if parse::cidr(cidr).is_err() {
                let field = format!("ipvs.excludeCIDRs[{index}]");
                self.problem::<()>(&field, cidr, "must be a range such as 192.0.2.0/24");
            }
        }
    }

    pub(super) fn within(&mut self, field: &str, default: i64, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let value = self.fields.int(field).unwrap_or(default);
        if range.contains(&value) {
            return Some(value);
        }
        let (least, most) = (range.start(), range.end());
        self.problem(field, value, format!("must be from {least} to {most}"))
    }

    /// A duration whose zero counts.
    fn timeout(&mut self, field: &str, default: Duration) -> Option<Duration> {
        match self.fields.exact_duration(field) {
            None => Some(default),
            Some(given) => given.get().or_else(|| self.problem(field, given, "must not be negative")),
        }
    }
}
