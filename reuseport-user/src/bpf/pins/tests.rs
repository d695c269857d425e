use super::*;

#[test]
fn names_differ_with_every_part_of_the_key_and_hold_no_dot() {
    let key = GroupKey {
        netns: 1,
        protocol: Protocol::Tcp,
        address: "10.0.0.1:6432".parse().unwrap(),
        v6only: false,
        device: 0,
        uid: 0,
    };
    let keys = [
        key,
        GroupKey { netns: 2, ..key },
        GroupKey { protocol: Protocol::Udp, ..key },
        GroupKey { address: "10.0.0.2:6432".parse().unwrap(), ..key },
        GroupKey { address: "[::]:6432".parse().unwrap(), ..key },
        GroupKey { address: "[::]:6432".parse().unwrap(), v6only: true, ..key },
        GroupKey { device: 3, ..key },
        GroupKey { uid: 33, ..key },
    ];
    let names: std::collections::BTreeSet<_> = keys.iter().map(name).collect();
    assert_eq!(names.len(), keys.len());
    assert!(names.iter().all(|name| !name.contains(['.', '/'])));
    for key in keys {
        assert_eq!(GroupKey::from_raw(&key.to_raw()), Some(key));
    }
}

#[test]
fn a_name_tells_its_port_in_place_and_aside() {
    let key = GroupKey {
        netns: 1,
        protocol: Protocol::Tcp,
        address: "10.0.0.1:6432".parse().unwrap(),
        v6only: false,
        device: 0,
        uid: 0,
    };
    for prefix in ["", NEW, OLD] {
        let path = Path::new("/base").join(format!("{prefix}{}", name(&key)));
        assert!(names_port(&path, Protocol::Tcp, 6432), "{path:?}");
        assert!(!names_port(&path, Protocol::Tcp, 643), "{path:?}");
        assert!(!names_port(&path, Protocol::Udp, 6432), "{path:?}");
    }
    assert!(!names_port(Path::new("/base/new-"), Protocol::Tcp, 6432));
}
