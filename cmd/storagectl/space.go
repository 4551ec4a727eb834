package main

import (
	"fmt"
	"io"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// listBar and showBar are how wide bars are, in characters.
const (
	listBar = 12
	showBar = 50
)

// part is one of what takes the room of stores.
type part struct {
	sign  byte
	bytes int64
}

// parts are all of them, in the order in which they are drawn. What is live is shown with the headers and the padding around it.
func parts(stores []api.Store) []part {
	out := []part{{'#', 0}, {'%', 0}, {'t', 0}, {'o', 0}, {' ', 0}, {'r', 0}}
	for _, s := range stores {
		reserve := min(s.UnusedBytes, s.ReserveBytes)
		for i, n := range []int64{s.LogBytes - s.GarbageBytes, s.GarbageBytes, s.TableBytes, s.OtherBytes, s.UnusedBytes - reserve, reserve} {
			out[i].bytes += n
		}
	}
	return out
}

// bar draws what takes the room of stores, and a blank behind it, where a person looks; otherwise nothing.
func (a *app) bar(stores []api.Store, width int) string {
	if !a.outTerminal {
		return ""
	}
	return drawBar(parts(stores), width) + " "
}

// drawBar draws parts of a whole. Each boundary is rounded for itself, so that the bar is as wide as it is meant to be.
func drawBar(ps []part, width int) string {
	whole := int64(0)
	for _, p := range ps {
		whole += p.bytes
	}
	out, sum := strings.Builder{}, int64(0)
	out.WriteByte('[')
	for _, p := range ps {
		from := boundary(sum, whole, width)
		sum += p.bytes
		out.WriteString(strings.Repeat(string(p.sign), boundary(sum, whole, width)-from))
	}
	out.WriteString(strings.Repeat(" ", width+1-out.Len()) + "]") // all of it while nothing is known
	return out.String()
}

func boundary(sum, whole int64, width int) int {
	if whole <= 0 {
		return 0
	}
	return int(float64(sum)/float64(whole)*float64(width) + 0.5)
}

// fillText rounds down: 100 % is said of a store that refuses.
func fillText(fill float64) string { return fmt.Sprintf("%d %%", int(100*fill)) }

// fullest is the fill of the node's fullest store.
func fullest(n api.Node) string {
	fill := 0.0
	for _, s := range n.Stores {
		fill = max(fill, s.Fill)
	}
	return fillText(fill)
}

// writeSpace says what takes the room of each store that tells it.
func (a *app) writeSpace(w io.Writer, stores []api.Store) {
	t := newTable("STORE", "LIVE", "GARBAGE", "TABLES", "OTHER", "UNUSED", "RESERVE")
	for _, s := range stores {
		if !s.Known() {
			continue
		}
		reserve := formatSize(s.ReserveBytes)
		if s.UnusedBytes < s.ReserveBytes {
			reserve = formatSize(s.UnusedBytes) + " of " + reserve
		}
		t.row(s.ID.String(), formatSize(s.LiveBytes), formatSize(s.GarbageBytes), formatSize(s.TableBytes), formatSize(s.OtherBytes),
			formatSize(max(0, s.UnusedBytes-s.ReserveBytes)), reserve)
	}
	t.section(w)
	if !a.outTerminal || len(t.rows) == 0 {
		return
	}
	fmt.Fprintln(w)
	for i := range stores {
		if stores[i].Known() {
			fmt.Fprintln(w, drawBar(parts(stores[i:i+1]), showBar))
		}
	}
	fmt.Fprintln(w, "# live  % garbage  t tables  o other files  r reserve")
}

// describeFullest says which store refuses new data first; empty while none tells.
func describeFullest(s api.Status) string {
	if s.Fullest == nil {
		return ""
	}
	node := "node " + nodeLabel(s.Fullest.Node, s.Fullest.NodeName)
	if s.Fullest.Fill >= 1 || s.Fullest.FreeBytes <= 0 {
		return node + ", it refuses new data"
	}
	return fmt.Sprintf("%s, it refuses new data after about %s more (%s of what it may hold is taken)", node, formatSize(s.Fullest.FreeBytes), fillText(s.Fullest.Fill))
}

// maxCompacting bounds the nodes that a line names.
const maxCompacting = 5

// describeCompacting says where room is made; empty when nowhere.
func describeCompacting(s api.Status) string {
	var places []string
	for i, r := range s.Compacting {
		if i == maxCompacting {
			places = append(places, fmt.Sprintf("and %d more", len(s.Compacting)-i))
			break
		}
		place := "node " + nodeLabel(r.Node, r.NodeName)
		if r.Compaction != storage.CompactionRunning {
			place += " (" + string(r.Compaction) + ")"
		}
		places = append(places, place)
	}
	return strings.Join(places, ", ")
}

// writeReasons writes reasons under a title, if there are any.
func writeReasons(w io.Writer, title string, reasons []api.Reason, severity func(api.Reason) string) {
	if len(reasons) == 0 {
		return
	}
	fmt.Fprintln(w, "\n"+title+":")
	for _, r := range reasons {
		fmt.Fprintf(w, "  %-9s %s: %s\n", severity(r), r.Subject, r.Text)
		if r.NextStep != "" {
			fmt.Fprintf(w, "  %-9s   -> %s\n", "", r.NextStep)
		}
	}
}
