package testcluster

import (
	"fmt"
	"os"
)

// Wipe deletes the data directory of a node that does not run, as if its disk had been replaced by an empty one: at its
// next start it joins as a new node.
func (n *Node) Wipe() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc != nil {
		return fmt.Errorf("testcluster: %s runs", n.Name)
	}
	if err := os.RemoveAll(n.DataDir); err != nil {
		return fmt.Errorf("testcluster: %w", err)
	}
	n.wasReady = false
	return nil
}
