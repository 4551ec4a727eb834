package main

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
)

// TestStagesFlags: what cannot be measured is refused.
func TestStagesFlags(t *testing.T) {
	if cfg, err := parseStagesFlags([]string{"-size-gib", "2"}); err != nil || cfg.sizeBytes != 2<<30 || cfg.rounds != 5 {
		t.Errorf("%+v, %v", cfg, err)
	}
	for _, args := range [][]string{{"-size-gib", "0"}, {"-rounds", "0"}, {"-time", "1500ms"}} {
		if _, err := parseStagesFlags(args); err == nil {
			t.Errorf("%v are taken", args)
		}
	}
}

// stageScrapes returns the metrics of three nodes after n writes, of which each stage took a microsecond more than the one before.
func stageScrapes(t *testing.T, n float64) (all []scrape) {
	t.Helper()
	for node := range 3 {
		text := "# HELP storage_x y\n"
		book := func(name, labels string, us, n float64) {
			text += fmt.Sprintf("%s_sum%s %g\n%s_count%s %g\n", name, labels, us*n/1e6, name, labels, n)
		}
		book("storage_segment_write_seconds", "", 5, n)
		book("storage_segment_sync_seconds", `{store="s"}`, float64(100+node), n)
		if node == 0 {
			book("storage_nbd_request_duration_seconds", `{operation="read"}`, 9999, n)
			book("storage_nbd_request_duration_seconds", `{operation="write"}`, 900, n)
			book("storage_volume_request_seconds", `{operation="write"}`, 850, n)
			for i, stage := range []string{"admit", "queue", "append", "send", "follower", "own_log", "commit", "apply", "answer"} {
				book("storage_replication_write_stage_seconds", `{stage="`+stage+`"}`, float64(80+i), n)
			}
			book("storage_replication_append_seconds", `{node="2"}`, 300, n)
			book("storage_replication_append_seconds", `{node="3"}`, 500, n)
		} else {
			for i, stage := range []string{"receive", "store", "sync", "answer"} {
				book("storage_replication_follower_stage_seconds", `{stage="`+stage+`"}`, float64(10*(i+1)*node), n)
			}
		}
		s, err := parseScrape([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// TestStagesAddUp: the stages of a table add up to its whole, what is between two metrics has a name, and only what was booked
// between the scrapes counts.
func TestStagesAddUp(t *testing.T) {
	values, err := stagesBetween(stageScrapes(t, 10), stageScrapes(t, 30), 1000)
	if err != nil {
		t.Fatal(err)
	}
	sums, whole, by := map[string]float64{}, map[string]float64{}, map[string]float64{}
	for _, v := range values {
		by[v.stage] = v.us
		if v.stage == wholeStage {
			whole[v.table] = v.us
		} else {
			sums[v.table] += v.us
		}
	}
	for _, table := range []string{writeTable, tripTable} {
		if math.Abs(sums[table]-whole[table]) > 1e-6 {
			t.Errorf("%s: stages of %v, and the whole is %v", table, sums[table], whole[table])
		}
	}
	for stage, want := range map[string]float64{"client, its socket, wake-ups": 100, "NBD server": 50, "gateway, and to the leader": 850 - 9*84,
		"first follower, there and back": 84, "wire and wake-ups": 400 - 150, "write and sync": 45, "sync of a log": 101} {
		if math.Abs(by[stage]-want) > 1e-6 {
			t.Errorf("%s took %v us, want %v", stage, by[stage], want)
		}
	}
	if _, err := stagesBetween(stageScrapes(t, 10), stageScrapes(t, 10), 1000); err == nil || !strings.Contains(err.Error(), "storage_replication_append_seconds") {
		t.Errorf("nothing was booked, and it says %v", err)
	}
}

// TestStageRows: a row has the median of the rounds and the ends, and its share of the table's whole.
func TestStageRows(t *testing.T) {
	round := func(a, b float64) []stageValue {
		return []stageValue{{writeTable, "a", a}, {writeTable, wholeStage, b}, {besideTable, "c", 7}}
	}
	rows := stageRows([][]stageValue{round(3, 10), round(1, 20), round(5, 12)})
	if want := (stageRow{Table: writeTable, Stage: "a", Median: 3, Min: 1, Max: 5, Share: 0.25}); rows[0] != want {
		t.Errorf("%+v, want %+v", rows[0], want)
	}
	if rows[2].Share != 0 {
		t.Errorf("beside it has a share: %+v", rows[2])
	}
	var out bytes.Buffer
	printStages(&out, rows)
	if text := out.String(); !strings.Contains(text, "25 %") || strings.Count(text, "mean us") != 2 {
		t.Errorf("printed:\n%s", text)
	}
	if got := spread([]float64{3, 1, 2.5}, 1); got != "2.5 (1.0 to 3.0)" {
		t.Errorf("spread %s", got)
	}
}
