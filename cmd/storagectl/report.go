package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
)

// errorView is an error for programs.
type errorView struct {
	Error struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
		Op      string `json:"op,omitempty"`
		Subject string `json:"subject,omitempty"`
		Hint    string `json:"hint,omitempty"`
		Code    int    `json:"exit_code"`
	} `json:"error"`
}

// report says on the error stream what went wrong and what to do next.
func (a *app) report(ctx context.Context, err error) {
	if _, ok := errors.AsType[exitStatus](err); ok {
		return
	}
	hint := ""
	if ctx.Err() == nil {
		hint = a.hint(ctx, err)
	}
	if !a.forProgram() {
		fmt.Fprintf(a.err, "storagectl: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		if hint != "" {
			fmt.Fprintf(a.err, "  %s\n", strings.ReplaceAll(hint, "\n", "\n  "))
		}
		return
	}
	var v errorView
	v.Error.Kind, v.Error.Message, v.Error.Hint, v.Error.Code = storage.KindOf(err).String(), err.Error(), hint, exitCode(err)
	var e *storage.Error
	if errors.As(err, &e) {
		v.Error.Op, v.Error.Subject = e.Op, e.Subject
	}
	if text, err := json.Marshal(v); err == nil {
		fmt.Fprintf(a.err, "%s\n", text)
	}
}

// hint is the next step after an error; empty when the error says it, or there is none.
func (a *app) hint(ctx context.Context, err error) string {
	var e *storage.Error
	if !errors.As(err, &e) || strings.Contains(err.Error(), "storagectl ") {
		return ""
	}
	object, name, _ := strings.Cut(e.Subject, " ")
	name = strings.Trim(name, `"`)
	switch e.Kind {
	case storage.KindNotFound:
		return a.similar(ctx, object, name)
	case storage.KindExists:
		if object == "volume" {
			return "choose another name, or look at that volume with 'storagectl volume show " + name + "'"
		}
	case storage.KindConflict:
		if object == "volume" && e.Op == "delete" { // what else a volume's state forbids is no matter of who has it, or says who
			return "'storagectl volume show " + name + "' says who has it"
		}
	case storage.KindInvalid:
		if object == "volume" && strings.Contains(e.Error(), "shrink") {
			return "a volume only grows; for a smaller one create another and copy what fits"
		}
		if a.failed != nil {
			return "see '" + a.failed.CommandPath() + " --help'"
		}
	case storage.KindUnavailable, storage.KindNotLeader:
		if a.api != nil && len(a.settings.Endpoints) > 0 {
			return fmt.Sprintf("asked %s (from %s); name other nodes with --endpoint HOST:PORT or STORAGECTL_ENDPOINTS",
				strings.Join(a.settings.Endpoints, ", "), a.settings.from)
		}
	case storage.KindNoSpace:
		if full, ok := errors.AsType[transfer.LocalFull](err); ok {
			return full.Hint()
		}
		return "discard what file systems on volumes do not use (fstrim), delete volumes, or make the file system of the fullest node larger, or its --capacity; " +
			"more nodes are room for new volumes; 'storagectl node list' shows the room"
	case storage.KindCorrupt:
		return "look at 'storagectl status', and at the nodes' logs"
	case storage.KindUnsupported:
		return "compare 'storagectl version' with what the nodes run"
	}
	return ""
}

// similar suggests what the name may have been meant to be.
func (a *app) similar(ctx context.Context, object, name string) string {
	if object != "volume" && object != "node" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var names []string
	if object == "volume" {
		names = a.volumeNames(ctx)
	} else {
		names = a.nodeNames(ctx)
	}
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "'storagectl " + object + " list' shows what there is"
}

// nearest returns the name that is most like name, or nothing when none is much like it.
func nearest(name string, names []string) string {
	best, least := "", max(len(name)/3, 1)+1
	for _, n := range slices.Sorted(slices.Values(names)) {
		if d := distance(name, n); d < least {
			best, least = n, d
		}
	}
	if best == "" && len(name) >= 3 {
		for _, n := range names {
			if strings.HasPrefix(n, name) {
				return n
			}
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with their neighbour to make b from a.
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now := make([]int, len(b)+1)
		now[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			now[j] = min(replace, last[j]+1, now[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last = last, now
	}
	return last[len(b)]
}
