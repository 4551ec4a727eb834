package status

import (
	"fmt"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/internal/size"
)

// How full a store may be before it is spoken of. A warning comes long before anything is refused, and is no part of health: who waits
// for a cluster that is well, to upgrade it for instance, does not wait for a disk that is fuller than people like.
const (
	warnFill     = 0.80
	degradedFill = 0.95
	// muchShare is which part of the capacity is worth a word: of other files, and of garbage that nobody collects.
	muchShare = 0.10
)

// judgeRoom judges how much more a store that has not failed takes. Severity HealthOK is a warning.
func judgeRoom(node string, s api.Store) (r api.Reason, found bool) {
	say := func(severity api.Health, text, step string) (api.Reason, bool) {
		return api.Reason{Severity: severity, Text: text, NextStep: step}, true
	}
	switch {
	case s.State == api.StoreFull && s.NoRoom:
		return say(api.HealthCritical, "the file system of node "+node+" gives no more room, so writes are refused; nothing is lost",
			"make room on it: remove other files, or raise its quota; the node goes on by itself within seconds")
	case s.State == api.StoreFull && stuck(s.StoreSpace) && s.Fill < 1:
		return say(api.HealthCritical, fmt.Sprintf("the disk of node %s has %s unused, its reserve is %s, and compaction makes no room (%s): new data is refused",
			node, size.Bytes(s.UnusedBytes), size.Bytes(s.ReserveBytes), s.Compaction),
			"look for groups without a majority and replicas that are pulled (`storagectl group list`), which hold what is dead; and "+roomStep(s))
	case s.State == api.StoreFull && compacts(s):
		return say(api.HealthCritical, "what lives takes all that it may of the disk of node "+node+": new data is refused, overwrites go on for a while", roomStep(s))
	case s.State == api.StoreFull:
		return say(api.HealthCritical, "the disk of node "+node+" is full up to its reserve: writes are refused", roomStep(s))
	case compacts(s) && s.Waits(fullBytes):
		return say(api.HealthDegraded, fmt.Sprintf("writes to the disk of node %s wait until compaction has made room: %s of it is garbage", node, size.Bytes(s.GarbageBytes)),
			"wait; if it stays so, write less for a while, or "+roomStep(s))
	case s.Fill >= degradedFill:
		return say(api.HealthDegraded, fillText(node, s), roomStep(s))
	case s.Fill >= warnFill:
		return say(api.HealthOK, fillText(node, s), roomStep(s))
	case s.Compaction == storage.CompactionBehind:
		return say(api.HealthOK, fmt.Sprintf("compaction on node %s does not keep up with what is written: writes are about to wait; %s is garbage", node,
			size.Bytes(s.GarbageBytes)), "wait; if it comes again and again, the disk is too slow or too full for this load")
	}
	return r, false
}

// stuck reports whether writes have to wait for room that compaction does not make: they are refused in the end.
func stuck(s storage.StoreSpace) bool {
	return s.Waits(fullBytes) && (s.Compaction == storage.CompactionNothingToWin || s.Compaction == storage.CompactionNoRoom)
}

func compacts(s api.Store) bool { return s.Known() && s.Compaction != storage.CompactionOff }

// fillText says how far a store is from refusing.
func fillText(node string, s api.Store) string {
	of := "what may live on the disk of node " + node
	if !compacts(s) {
		of = "the disk of node " + node + ", its reserve left out,"
	}
	text := fmt.Sprintf("it refuses new data after about %s more: %d %% of %s is taken", size.Bytes(s.FreeBytes), int(100*s.Fill), of)
	if others(s) {
		text += "; other files have " + size.Bytes(s.OtherBytes).String() + " of its file system"
	}
	return text
}

// others reports whether other files take much of the store's room.
func others(s api.Store) bool { return float64(s.OtherBytes) > muchShare*float64(s.CapacityBytes) }

// roomStep is how room is made, the easiest first.
func roomStep(s api.Store) (step string) {
	if others(s) {
		step = "remove other files from its file system (" + size.Bytes(s.OtherBytes).String() + "); "
	}
	step += "discard what is not used (fstrim), delete volumes, or make its file system larger"
	if s.Known() && !compacts(s) && float64(s.GarbageBytes) > muchShare*float64(s.CapacityBytes) {
		step += "; or start the node with compaction: " + size.Bytes(s.GarbageBytes).String() + " of it is garbage"
	}
	return step
}
