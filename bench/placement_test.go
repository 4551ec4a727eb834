package main

import (
	"strings"
	"testing"
)

// TestPlacementFlags: what cannot be simulated is refused, with every problem at once.
func TestPlacementFlags(t *testing.T) {
	cfg, err := parsePlacementFlags([]string{"-nodes", "3,10"})
	if err != nil || len(cfg.nodes) != 2 || cfg.nodes[1] != 10 {
		t.Errorf("%+v (%v)", cfg, err)
	}
	_, err = parsePlacementFlags([]string{"-nodes", "2,x,1001", "-zones", "0", "-fill", "0.9"})
	for _, part := range []string{`"2"`, `"x"`, `"1001"`, "-zones", "-fill"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("nothing is said of %s: %v", part, err)
		}
	}
}

// TestPlace: bytes go evenly, to as many zones as there are, and no more than must be is moved.
func TestPlace(t *testing.T) {
	cfg, err := parsePlacementFlags(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{3, 4, 10, 30} {
		r, err := place(t.Context(), cfg, n)
		if err != nil {
			t.Fatalf("%d nodes: %v", n, err)
		}
		if r.Fullest > 1.15 || r.Emptiest < 0.8 || r.GrowFullest > 1.2 || r.SharedZones > 0 || r.GrowMoved > 1.2 || n > 3 && (r.LossMoved < 0.99 || r.LossMoved > 1.3) {
			t.Errorf("%+v", r)
		}
		if n == 3 && (r.TripleLoss != 1 || r.RandomLoss != 1) || n == 30 && (r.TripleLoss < 0.02 || r.TripleLoss > float64(r.Groups)/4060) {
			t.Errorf("%d nodes: a triple loses data with %v, at random with %v", n, r.TripleLoss, r.RandomLoss)
		}
	}
}
