package main

import (
	"errors"
	"fmt"
	"strings"

	storage "github.com/storaged/storaged"
)

// exitTable translates kinds of errors to exit codes. Codes are part of the interface for scripts: they never change.
var exitTable = []struct {
	kind storage.Kind
	code int
	help string
}{
	{storage.KindNone, 0, "done"},
	{storage.KindInternal, 1, "a defect of storaged or storagectl"},
	{storage.KindInvalid, 2, "the command line or the request can never succeed as it stands"},
	{storage.KindNotFound, 3, "the object does not exist"},
	{storage.KindExists, 4, "an object of that name exists"},
	{storage.KindConflict, 5, "the object is in a state that forbids it, such as a volume in use"},
	{storage.KindFenced, 6, "another host has taken the volume over"},
	{storage.KindNotLeader, 7, "no node leads at the moment"},
	{storage.KindUnavailable, 8, "no answer: nobody listens, no majority, or overloaded"},
	{storage.KindNoSpace, 9, "the stores, or the local disk, are full"},
	{storage.KindCorrupt, 10, "stored bytes fail their checksum"},
	{storage.KindIO, 11, "a disk refused to read or write"},
	{storage.KindPermission, 12, "not allowed"},
	{storage.KindUnsupported, 13, "this version or this host cannot do it"},
	{storage.KindCanceled, 130, "interrupted, or not confirmed"},
}

// Exit codes of `status --check` for a cluster that answers.
const (
	exitDegraded = 20
	exitCritical = 21
	exitStarting = 22
)

// Exit codes of `verify` for a volume that is neither sound nor mended.
const (
	exitLost      = 23
	exitDiffers   = 24
	exitUnchecked = 25
)

// exitStatus is an error that is not one: the command did its work and its outcome is this code.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// exitCode is what the process ends with.
func exitCode(err error) int {
	if e, ok := errors.AsType[exitStatus](err); ok {
		return int(e)
	}
	kind := storage.KindOf(err)
	for _, row := range exitTable {
		if row.kind == kind {
			return row.code
		}
	}
	return 1
}

// exitHelp is the table for people.
func exitHelp() string {
	var b strings.Builder
	for _, row := range exitTable {
		fmt.Fprintf(&b, "  %3d  %-17s  %s\n", row.code, row.kind, row.help)
	}
	fmt.Fprintf(&b, "  %3d  %-17s  %s\n", exitDegraded, "", "status --check: the cluster is degraded")
	fmt.Fprintf(&b, "  %3d  %-17s  %s\n", exitCritical, "", "status --check: the cluster is critical")
	fmt.Fprintf(&b, "  %3d  %-17s  %s\n", exitStarting, "", "status --check: the cluster is starting: it was never whole yet")
	fmt.Fprintf(&b, "  %3d  %-17s  %s\n", exitLost, "", "verify: blocks are lost, or tables damaged")
	fmt.Fprintf(&b, "  %3d  %-17s  %s\n", exitDiffers, "", "verify: replicas differ")
	fmt.Fprintf(&b, "  %3d  %-17s  %s\n", exitUnchecked, "", "verify: not everything could be checked, compared or mended")
	return b.String()
}
