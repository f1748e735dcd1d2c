"""Task runners: data, training, evaluation, command line. They import effbackbones, never heads."""
