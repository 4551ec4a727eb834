// Package pace holds what is copied between nodes, beside clients, to what these do not feel: by how long their writes to the disk take with it
// and without. It copies nothing, and knows no disk: who copies asks it before, and it asks for the latency.
package pace
