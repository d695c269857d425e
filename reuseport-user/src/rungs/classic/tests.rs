use super::*;

/// What a classic program returns on `cpu`, with each of these random numbers in turn.
fn run(Program(program): &Program, cpu: Cpu, random: u32) -> u32 {
    let (mut at, mut value) = (0, 0);
    loop {
        let step = program[at];
        at += 1;
        match u32::from(step.code) {
            LOAD if step.k == THE_CPU => value = cpu,
            LOAD if step.k == A_RANDOM_NUMBER => value = random,
            MODULO => value %= step.k,
            JUMP => at += step.k as usize,
            IF_EQUAL => at += usize::from(if value == step.k { step.jt } else { step.jf }),
            IF_AT_LEAST => at += usize::from(if value >= step.k { step.jt } else { step.jf }),
            RETURN => return step.k,
            code => panic!("no such operation here: {code:#x}"),
        }
    }
}

#[test]
fn each_cpu_has_its_listener() {
    let rows = rows(&[Some(3), None, Some(0), Some(70)]);
    let program = Program::new(&rows).unwrap();
    for (cpu, place) in [(0, 2), (3, 0), (70, 3), (1, NOBODY), (u32::MAX, NOBODY)] {
        assert_eq!(run(&program, cpu, 7), place, "CPU {cpu}");
    }
}

#[test]
fn those_who_share_a_cpu_share_its_connections() {
    let share = |place, part| Share { place, part };
    let rows = Rows::from([(1, vec![share(5, 1), share(0, 2), share(9, 1)]), (2, vec![])]);
    let program = Program::new(&rows).unwrap();
    let taken: Vec<u32> = (0..8).map(|random| run(&program, 1, random)).collect();
    assert_eq!(taken, [5, 0, 0, 9, 5, 0, 0, 9]);
    assert_eq!(run(&program, 2, 0), NOBODY);
    // A row longer than a conditional jump reaches, and one after it.
    let long: Vec<Share> = (0..200).map(|place| share(place, 1)).collect();
    let program = Program::new(&Rows::from([(0, long), (1, vec![share(7, 1)])])).unwrap();
    assert_eq!(run(&program, 0, 199), 199);
    assert_eq!(run(&program, 1, 0), 7);
}

#[test]
fn says_when_there_is_no_room() {
    let many = |cpus: u32| rows(&(0..cpus).map(Some).collect::<Vec<_>>());
    assert!(Program::new(&many(1024)).is_ok());
    let error = Program::new(&many(2000)).unwrap_err().to_string();
    assert!(error.contains("2000 CPUs") && error.contains("4096"), "{error}");
}
