//! In which order listeners began to listen, as far as the kernel's own list of them tells.

use super::namespaces::{self, Found};
use super::{DiscoverError, Target};
use crate::model::GroupKey;

/// Cookies of the group's TCP listeners in the order in which they began to listen.
///
/// It is the kernel's order of the group's members too, unless one of them has left since: the last
/// then moved into its place there, but not in this list.
pub fn listen_order(target: &Target, group: &GroupKey) -> Result<Vec<u64>, DiscoverError> {
    let Found { place, sockets } = namespaces::find(target)?;
    let netns = place.netns().cookie;
    let is_member = |it: &&super::Socket| {
        let key = GroupKey {
            netns,
            protocol: group.protocol,
            address: it.address,
            v6only: it.v6only,
            device: it.device,
            uid: it.uid,
        };
        key == *group
    };
    let mut order: Vec<u64> = sockets.iter().filter(is_member).map(|it| it.cookie).collect();
    // A newcomer is put before the others (IPv4), or behind them (IPv6).
    if group.address.is_ipv4() {
        order.reverse();
    }
    Ok(order)
}
