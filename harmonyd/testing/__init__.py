"""What harmonyd's own tests use, shipped for those of its users.

``data``          real and made DICOM files
``pacs``          a real PACS: DCMTK's dcmqrscp, loaded with them
``peer``          a peer that plays a script: refuses, hangs, aborts, miscounts
``config_files``  configurations for a test
``daemon``        a whole harmonyd in a process of its own
``leftovers``     what a test left behind
``processes``     ports, process groups, waiting

Nothing here needs more than harmonyd itself does, except the process of a scripted peer: the ``test`` extra.
"""
