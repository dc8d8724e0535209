use super::*;

const A: &str = "aaaaaaaaaaaaaaaa1";
const B: &str = "bbbbbbbbbbbbbbbb1";

fn user(name: &str, container: Option<&str>) -> DeviceUser {
    DeviceUser { name: name.into(), container: container.map(Into::into) }
}

#[test]
fn a_device_belongs_to_the_lane_that_it_was_first_accepted_on() {
    let directory = tempfile::tempdir().unwrap();
    let devices = Arc::new(Devices::open(directory.path(), None).unwrap());
    assert_eq!(devices.check_may_connect(A, None), Ok(()));
    drop(devices.bind_provisionally(A, &user("builder", None)));
    devices.remember_external(B);
    drop(devices.bind_provisionally(B, &user("builder", None)));
    let bound = Err(DeviceRefusal::Bound { device: A.into(), agent: "builder".into() });
    for devices in [&devices, &Arc::new(Devices::open(directory.path(), None).unwrap())] {
        assert_eq!(
            (
                devices.check_may_connect(A, None),
                devices.check_may_connect(A, Some("other")),
                devices.check_may_connect(B, None)
            ),
            (bound.clone(), Ok(()), Ok(()))
        );
    }
    assert!(release(directory.path(), &["b".into()]).is_err(), "a device of the external lane is not bound");
    release(directory.path(), &[A[..12].into()]).unwrap();
    assert_eq!(devices.check_may_connect(A, None), Ok(()), "a release by the command is noticed");
    drop(devices.bind_provisionally(A, &user("builder", None)));
    assert_eq!(devices.check_may_connect(A, None), Ok(()), "a released device is not bound again");
    assert!(release(directory.path(), &[A.into()]).unwrap_err().to_string().contains("no bound device"));
}

#[test]
fn only_a_refusal_frees_a_device_and_only_if_no_other_connection_uses_it() {
    let directory = tempfile::tempdir().unwrap();
    let devices = Arc::new(Devices::open(directory.path(), None).unwrap());
    let bind = |device| devices.bind_provisionally(device, &user("builder", None)).unwrap();
    let is_bound = |device: &str| {
        let bound = devices.check_may_connect(device, None).is_err();
        assert_eq!(read(directory.path()).unwrap().contains_key(device), bound, "the file and the memory agree");
        bound
    };
    let refused = bind(A);
    assert!(is_bound(A), "the device is bound before the gateway gets the connect");
    refused.remove();
    assert!(!is_bound(A));
    drop(bind(A));
    assert!(
        is_bound(A) && devices.bind_provisionally(A, &user("builder", None)).is_none(),
        "without an answer the binding stays"
    );
    for (device, answers) in [("b1", [true, false]), ("b2", [false, true]), ("b3", [false, false])] {
        let both = [bind(device), bind(device)];
        for (binding, accepted) in both.into_iter().zip(answers) {
            if accepted { drop(binding) } else { binding.remove() }
        }
        assert_eq!(is_bound(device), answers.contains(&true), "{answers:?}");
    }
}

#[test]
fn the_gateways_own_device_is_never_bound() {
    let (directory, gateway) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(gateway.path().join("identity")).unwrap();
    std::fs::write(gateway.path().join("identity/device.json"), format!("{{\"version\":1,\"deviceId\":{A:?}}}"))
        .unwrap();
    let devices = Arc::new(Devices::open(directory.path(), Some(gateway.path())).unwrap());
    drop(devices.bind_provisionally(A, &user("cli", None)));
    drop(devices.bind_provisionally(B, &user("cli", None)));
    assert_eq!(devices.check_may_connect(A, None), Ok(()));
    assert!(devices.check_may_connect(B, None).is_err());
}

#[test]
fn an_agent_with_too_many_devices_gets_no_further_one() {
    let directory = tempfile::tempdir().unwrap();
    let table: DeviceTable = (0..MAX_PER_AGENT)
        .map(|n| (format!("d{n}"), DeviceEntry { agent: Some("a".into()), since: 0, containers: Vec::new() }))
        .collect();
    std::fs::write(directory.path().join(FILE), serde_json::to_vec(&table).unwrap()).unwrap();
    let devices = Arc::new(Devices::open(directory.path(), None).unwrap());
    assert_eq!(devices.check_may_connect("new", Some("a")), Err(DeviceRefusal::TooMany));
    assert_eq!(devices.check_may_connect("d7", Some("a")), Ok(()));
    assert_eq!((devices.check_may_connect("new", Some("b")), devices.check_may_connect("new", None)), (Ok(()), Ok(())));
    assert_eq!(devices.check_may_connect("", None), Err(DeviceRefusal::Malformed));
    assert_eq!(devices.check_may_connect(&"a".repeat(MAX_ID + 1), Some("b")), Err(DeviceRefusal::Malformed));
}

#[test]
fn a_full_file_names_itself_in_the_refusal() {
    let directory = tempfile::tempdir().unwrap();
    let table: DeviceTable = (0..MAX_DEVICES)
        .map(|n| (format!("d{n}"), DeviceEntry { agent: None, since: 0, containers: Vec::new() }))
        .collect();
    std::fs::write(directory.path().join(FILE), serde_json::to_vec(&table).unwrap()).unwrap();
    let devices = Arc::new(Devices::open(directory.path(), None).unwrap());
    let refusal = devices.check_may_connect("new", Some("a")).unwrap_err();
    assert!(refusal.to_string().contains(FILE), "the agent has no device that could be released: {refusal}");
    assert_eq!((devices.check_may_connect("d7", Some("a")), devices.check_may_connect("new", None)), (Ok(()), Ok(())));
}

#[test]
fn a_damaged_file_frees_no_device_and_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let devices = Arc::new(Devices::open(directory.path(), None).unwrap());
    drop(devices.bind_provisionally(A, &user("builder", None)));
    std::fs::write(directory.path().join(FILE), "{").unwrap();
    assert!(devices.check_may_connect(A, None).is_err());
    drop(devices.bind_provisionally(B, &user("builder", None)));
    assert!(devices.check_may_connect(B, None).is_err(), "the new binding holds in memory");
    assert_eq!(std::fs::read_to_string(directory.path().join(FILE)).unwrap(), "{");
    assert!(Devices::open(directory.path(), None).is_err());
}

#[test]
fn a_device_has_the_containers_that_used_it_until_they_are_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let devices = Arc::new(Devices::open(directory.path(), None).unwrap());
    devices.remember_external(B);
    for (device, container) in [(A, Some("one")), (A, Some("two")), (A, Some("one")), (A, None), (B, Some("one"))] {
        drop(devices.bind_provisionally(device, &user("builder", container)));
    }
    let both = |expected: &[(&str, &[&str])]| {
        let expected: Vec<(String, Vec<String>)> = expected
            .iter()
            .map(|(device, containers)| ((*device).into(), containers.iter().map(|id| (*id).into()).collect()))
            .collect();
        let opened = Devices::open(directory.path(), None).unwrap();
        assert_eq!((devices.devices_with_containers(), opened.devices_with_containers()), (expected.clone(), expected));
    };
    both(&[(A, &["two", "one"])]);
    devices.forget_containers(&["one".to_owned()].into()).unwrap();
    both(&[(A, &["two"])]);
    devices.forget_containers(&["two".to_owned()].into()).unwrap();
    both(&[]);
    assert!(devices.check_may_connect(A, None).is_err(), "the device stays bound");
    drop(devices.bind_provisionally(A, &user("builder", Some("three"))));
    both(&[(A, &["three"])]);
    for number in 0..2 * MAX_CONTAINERS {
        drop(devices.bind_provisionally(A, &user("builder", Some(&number.to_string()))));
    }
    assert_eq!(devices.devices_with_containers()[0].1.len(), MAX_CONTAINERS);
    release(directory.path(), &[A.into()]).unwrap();
    both(&[]);
}
