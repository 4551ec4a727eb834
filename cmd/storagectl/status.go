package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

func newStatus(a *app) *cobra.Command {
	var watch, check bool
	var every time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "How the cluster is, in numbers and in words",
		Long: `Shows the cluster's health with the reasons when it is not ok and what to do about each, the room in the stores, and
replicas on their way into their groups. Fullest is the store that is the first to refuse new data, and after how much.
Warnings are no part of the health: a store is spoken of from 80 % of what it may hold, is degraded from 95 %, and
critical when the next write that needs room is refused.

--watch shows it again and again until Ctrl-C; a cluster that does not answer for a moment does not end it. With -o json
each answer is an object of its own. --check makes the exit code tell: 0 ok, 20 degraded, 21 critical, 22 starting. A
cluster is starting while it is made, until each of its groups has had a leader; it holds nothing then that could be lost.`,
		Example: "  storagectl status\n  storagectl status --watch\n  storagectl status --check >/dev/null || page-somebody\n  until storagectl status --check >/dev/null; do sleep 1; done",
		Args:    takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			if watch {
				return a.watchStatus(c.Context(), every)
			}
			s, err := a.showStatus(c.Context())
			if err != nil || !check {
				return err
			}
			switch s.Health {
			case api.HealthOK:
				return nil
			case api.HealthDegraded:
				return exitStatus(exitDegraded)
			case api.HealthStarting:
				return exitStatus(exitStarting)
			default:
				return exitStatus(exitCritical)
			}
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	c.Flags().DurationVar(&every, "every", time.Second, "how often --watch asks")
	c.Flags().BoolVar(&check, "check", false, "exit with 20 when degraded, 21 when critical, 22 when starting")
	return c
}

func (a *app) showStatus(ctx context.Context) (api.Status, error) {
	client, err := a.client()
	if err != nil {
		return api.Status{}, err
	}
	s, err := client.Status(ctx)
	if err != nil {
		return api.Status{}, err
	}
	return s, a.show(viewStatus(s), func(w io.Writer, _ bool) { a.writeStatus(w, s) })
}

// watchStatus shows the status until ctx ends, which is how it is meant to end.
func (a *app) watchStatus(ctx context.Context, every time.Duration) error {
	if every < 100*time.Millisecond {
		return storage.E("show", storage.KindInvalid, "status", errors.New("--every must be at least 100ms"))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if !a.forProgram() {
			if a.outTerminal {
				fmt.Fprint(a.out, "\x1b[H\x1b[2J") // home, and clear the screen
			}
			fmt.Fprintf(a.out, "%s\n", a.now().UTC().Format(time.RFC3339))
		}
		if _, err := a.showStatus(ctx); err != nil && ctx.Err() == nil {
			a.report(ctx, err)
		}
		if !a.forProgram() && !a.outTerminal {
			fmt.Fprintln(a.out)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// catalogRead reports whether the node that answers has a copy of the catalog. One that was started and has heard no leader
// since has none.
func catalogRead(s api.Status) bool { return s.Age >= 0 || s.NodesTotal > 0 }

func (a *app) writeStatus(w io.Writer, s api.Status) {
	lead := "nobody leads"
	if s.CatalogLeader != 0 {
		lead = fmt.Sprintf("node %s leads, term %d, index %d", nodeLabel(s.CatalogLeader, s.CatalogLeaderName), s.CatalogTerm, s.CatalogIndex)
	}
	groups := fmt.Sprintf("%d of %d with %s", s.GroupsFull, s.GroupsTotal, plural(s.ReplicasWanted, "replica", "replicas"))
	if s.GroupsWithoutLeader > 0 {
		groups += fmt.Sprintf(", %d without a leader", s.GroupsWithoutLeader)
	}
	nodes, volumes := fmt.Sprintf("%d of %d up", s.NodesUp, s.NodesTotal), fmt.Sprintf("%d, %s in all", s.Volumes, formatSize(s.ProvisionedBytes))
	if s.UsableBytes > 0 {
		volumes += fmt.Sprintf(", %s of the %s that the stores hold with all copies", percent(s.ProvisionedBytes, s.UsableBytes), formatSize(s.UsableBytes))
	}
	stores := fmt.Sprintf("%s used of %s (%s), %s free", formatSize(s.UsedBytes), formatSize(s.CapacityBytes),
		percent(s.UsedBytes, s.CapacityBytes), formatSize(s.FreeBytes))
	if s.GarbageBytes > 0 {
		stores += fmt.Sprintf(", %s garbage", formatSize(s.GarbageBytes))
	}
	switch {
	case !s.StoresHeard():
		stores = formatSize(s.CapacityBytes) + ", use and free space are not known"
	case s.StoresUnknown > 0:
		stores += fmt.Sprintf(", without %s whose use is not known", plural(s.StoresUnknown, "store", "stores"))
	}
	age := shortDuration(s.Age) + " old"
	if s.Age < 0 {
		age = "which has heard no leader of the catalog since it was started"
	}
	if !catalogRead(s) { // there may be plenty of all this
		nodes, groups, volumes, stores = "not known", "not known", "not known", "not known"
	}
	facts(w, "Cluster", s.ClusterID.String(), "Version", describeVersion(s), "Health", string(s.Health), "Nodes", nodes, "Groups", groups, "Catalog", lead,
		"Volumes", volumes, "Stores", stores, "Fullest", describeFullest(s), "Compacting", describeCompacting(s), "Answer", fmt.Sprintf("from node %s, %s", nodeLabel(s.AnsweredBy, s.AnsweredByName), age))
	writeReasons(w, "What is the matter", s.Reasons, func(r api.Reason) string { return string(r.Severity) })
	writeReasons(w, "Warnings", s.Warnings, func(api.Reason) string { return "warning" })
	if len(s.Tasks) > 0 {
		fmt.Fprintln(w, "\nIn progress:")
		t := newTable("TASK", "GROUP", "TO NODE", "STEP", "DONE", "RUNNING")
		for _, task := range s.Tasks {
			done, running := "-", "-"
			if p := task.Progress; p != nil {
				done = describeProgress(*p)
				if p.TotalBytes > 0 {
					done += " of " + formatSize(p.TotalBytes)
				}
				running = a.age(p.StartedAt)
			}
			t.row(string(task.Kind), task.Group.String(), nodeLabel(task.Node, task.NodeName), orDash(task.Step), done, running)
		}
		t.write(w, "")
	}
}
