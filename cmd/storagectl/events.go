package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// followEvery is between two questions for new events.
const followEvery = 2 * time.Second

// eventFlags say which events are shown.
type eventFlags struct {
	node, volume, severity string
	group                  uint32
	kinds                  []string
	since                  time.Duration
	limit                  int
	follow                 bool
}

func newEvents(a *app) *cobra.Command {
	var f eventFlags
	c := &cobra.Command{
		Use:   "events",
		Short: "Say what has happened in the cluster",
		Long: `Lists what has happened, the newest last: nodes that joined, were silent, came back or were removed, drains and
maintenance, replicas that were made or removed and because of what, volumes that were created, deleted or taken over.
The cluster keeps the newest 1,024 events. Names are those of the time; times are of the node that led the catalog.

Flags choose among them, and all that are given must fit. With --follow new events are shown as they come, until Ctrl-C;
for programs each is then an object of its own.`,
		Example: "  storagectl events --node server-c --since 24h\n  storagectl events --severity warning --follow",
		Args:    takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			filter, err := f.filter(a.now())
			if err != nil {
				return err
			}
			return a.events(c.Context(), filter, f.follow)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.node, "node", "", "events of this node, by its name or id, and those that happened because of it")
	flags.Uint32Var(&f.group, "group", 0, "events of this group")
	flags.StringVar(&f.volume, "volume", "", "events of the volume that had this name")
	flags.StringSliceVar(&f.kinds, "kind", nil, "events of these kinds; Tab shows which there are")
	flags.StringVar(&f.severity, "severity", "", "events of this severity at least: info, warning or error")
	flags.DurationVar(&f.since, "since", 0, "events of this time until now, 1h for example")
	flags.IntVar(&f.limit, "limit", 100, "show at most so many, the newest; at most 1000")
	flags.BoolVarP(&f.follow, "follow", "f", false, "go on, and show new events as they come")
	complete(c, "severity", string(storage.SeverityInfo), string(storage.SeverityWarning), string(storage.SeverityError))
	complete(c, "kind", views(storage.EventKinds(), func(k storage.EventKind) string { return string(k) })...)
	for flag, names := range map[string]func(context.Context) []string{"node": a.nodeNames, "volume": a.volumeNames, "group": a.groupIDs} {
		_ = c.RegisterFlagCompletionFunc(flag, a.completes(-1, names)) // there is such a flag
	}
	return c
}

// filter returns what the flags ask for.
func (f *eventFlags) filter(now time.Time) (api.EventFilter, error) {
	out := api.EventFilter{Node: f.node, Group: storage.GroupID(f.group), Volume: f.volume, Severity: storage.EventSeverity(f.severity), Limit: f.limit}
	var problems storage.Problems
	problems.Check(f.limit > 0 && f.limit <= api.MaxPageSize, "--limit is %d; use 1 to %d", f.limit, api.MaxPageSize)
	problems.Check(f.since >= 0, "--since is %v; use a time until now, 1h for example", f.since)
	severities := []storage.EventSeverity{"", storage.SeverityInfo, storage.SeverityWarning, storage.SeverityError}
	problems.Check(slices.Contains(severities, out.Severity), "--severity %s: use info, warning or error", strconv.Quote(f.severity))
	for _, k := range f.kinds {
		kind := storage.EventKind(k)
		problems.Check(slices.Contains(storage.EventKinds(), kind), "--kind %s: there are %s", strconv.Quote(k),
			strings.Join(views(storage.EventKinds(), func(k storage.EventKind) string { return string(k) }), ", "))
		out.Kinds = append(out.Kinds, kind)
	}
	if f.since > 0 {
		out.Since = now.Add(-f.since)
	}
	return out, problems.Err("list events", "")
}

// eventView is an event, for programs.
type eventView struct {
	storage.Event

	Severity storage.EventSeverity `json:"severity"`
	Text     string                `json:"text"`
}

func viewEvent(e api.Event) eventView { return eventView{e.Event, e.Severity, e.Text} }

// events shows events, and with follow those that come until ctx ends, which is how it is meant to end.
func (a *app) events(ctx context.Context, f api.EventFilter, follow bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	list, err := c.Events(ctx, f)
	if err != nil {
		return err
	}
	if !list.Kept {
		return storage.E("list events", storage.KindUnsupported, "cluster", errors.New("its version keeps no events: run `storagectl cluster upgrade` once every node runs a release that does"))
	}
	if !follow {
		return a.show(views(list.Events, viewEvent), func(w io.Writer, wide bool) { writeEvents(w, list.Events, wide) })
	}
	for {
		if list.Gap {
			fmt.Fprintln(a.err, "storagectl: events were forgotten before they could be shown")
		}
		for _, e := range list.Events {
			if err := a.show(viewEvent(e), func(w io.Writer, _ bool) { writeEvent(w, e) }); err != nil {
				return err
			}
		}
		// After 0 would ask for the newest once more.
		f.After = max(f.After, list.Next)
		if a.sleep(ctx, followEvery) != nil {
			return nil //nolint:nilerr // a person has seen enough
		}
		next, err := c.Events(ctx, f)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // likewise
		case err != nil:
			a.report(ctx, err)
			list = api.Events{Next: f.After}
		default:
			list = next
		}
	}
}

func writeEvents(w io.Writer, list []api.Event, wide bool) {
	t := newTable("TIME", "SEVERITY", "KIND", "WHAT").more(wide, "NUMBER")
	for _, e := range list {
		t.row(e.At.UTC().Format(time.RFC3339), string(e.Severity), string(e.Kind), eventText(e), strconv.FormatUint(e.Seq, 10))
	}
	t.write(w, "no events")
}

// writeEvent writes one as a line.
func writeEvent(w io.Writer, e api.Event) {
	fmt.Fprintf(w, "%s  %s  %s\n", e.At.UTC().Format(time.RFC3339), e.Severity, eventText(e))
}

// eventText is what the server says of an event.
func eventText(e api.Event) string { return cmp.Or(e.Text, string(e.Kind)) }
