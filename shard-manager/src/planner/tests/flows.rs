//! The flows: against every assignment there is, and what their parts promise.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::planner::flow::{Cost, Network, SINK};

fn bytes(bytes: u64) -> Cost {
    Cost { bytes: bytes.into(), ..Cost::default() }
}

/// The least sum over all ways to give every row a column of its own.
fn least(rows: &[Vec<u64>], taken: &mut Vec<usize>) -> u64 {
    let Some((row, rest)) = rows.split_first() else { return 0 };
    let mut best = u64::MAX;
    for (column, cost) in row.iter().enumerate() {
        if !taken.contains(&column) {
            taken.push(column);
            best = best.min(cost + least(rest, taken));
            taken.pop();
        }
    }
    best
}

/// A network of rows and columns, its row nodes and its edges by row and column.
fn assignment(rows: &[Vec<u64>], columns: usize) -> (Network, Vec<usize>, Vec<Vec<usize>>) {
    let mut network = Network::new();
    let leaves: Vec<usize> = (0..columns)
        .map(|_| {
            let node = network.node();
            network.edge(node, SINK, 1, Cost::default());
            node
        })
        .collect();
    let (mut nodes, mut edges) = (Vec::new(), Vec::new());
    for row in rows {
        let node = network.node();
        nodes.push(node);
        let row = row.iter().zip(&leaves);
        edges.push(row.map(|(cost, leave)| network.edge(node, *leave, 1, bytes(*cost))).collect());
    }
    (network, nodes, edges)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_assignment_costs_the_least(rows in vec(vec(0u64..20, 5), 0..=5)) {
        let (mut network, nodes, edges) = assignment(&rows, 5);
        for node in nodes {
            prop_assert!(network.push(node));
        }
        let mut whole = 0;
        for (row, edges) in rows.iter().zip(edges) {
            let taken = edges.iter().map(|edge| network.carried(*edge));
            prop_assert_eq!(taken.sum::<u64>(), 1);
            for (cost, edge) in row.iter().zip(edges) {
                whole += network.carried(edge) * cost;
            }
        }
        prop_assert_eq!(whole, least(&rows, &mut Vec::new()));
    }
}

#[test]
fn a_push_without_a_way_changes_nothing() {
    let (mut network, nodes, edges) = assignment(&[vec![3], vec![1]], 1);
    assert!(network.push(nodes[0]));
    assert!(!network.push(nodes[1]));
    assert_eq!([network.carried(edges[0][0]), network.carried(edges[1][0])], [1, 0]);
    assert_eq!(network.cost(edges[0][0]), bytes(3));
}

#[test]
fn a_later_unit_leads_an_earlier_one_another_way() {
    let (mut network, nodes, edges) = assignment(&[vec![1, 2], vec![1, 9]], 2);
    assert!(network.push(nodes[0]));
    assert_eq!(network.carried(edges[0][0]), 1);
    assert!(network.push(nodes[1]));
    let carried = [edges[0][0], edges[0][1], edges[1][0], edges[1][1]];
    assert_eq!(carried.map(|edge| network.carried(edge)), [0, 1, 1, 0]);
}

#[test]
fn prices_count_what_has_to_give_way() {
    let (mut network, nodes, _) = assignment(&[vec![1, 5], vec![4, 7]], 2);
    assert!(network.push(nodes[0]) && network.push(nodes[1]));
    // Rows 0 and 1 sit in columns 0 and 1. From column 1 the way to row 0 leads back over row 1,
    // which gives its seat of 7 up for one of 4 in column 0, where row 0 gives up its seat of 1.
    let column = nodes[0] - 1;
    let prices = network.prices(column);
    let way = prices[nodes[0]].map(|cost| cost.bytes);
    assert_eq!(way, Some(-7 + 4 - 1));
}

#[test]
fn costs_are_compared_from_the_first_field() {
    let over = Cost { over: 1, ..Cost::default() };
    let moves = Cost { moves: 1, ..Cost::default() };
    let walk = Cost { walk: 1_000, ..Cost::default() };
    assert!(over > bytes(u64::MAX) && bytes(1) > moves && moves > walk);
    assert_eq!(over + bytes(2) - over, bytes(2));
    assert_eq!(-bytes(2), Cost::default() - bytes(2));
}
